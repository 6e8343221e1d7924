"""What ONNX nodes become: the torch modules that compute the same, weights inside."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import nn

from approx_env.teachers.models.onnx_file import File, Refusal

# None: a node that passes its first input on. A function: it is called with all inputs.
Counterpart = nn.Module | Callable[..., torch.Tensor] | None
Settings = dict[str, Any]  # attributes of a node; what a function below knows, it takes out


def counterpart(file: File, node: onnx.NodeProto) -> Counterpart:
    """What a node becomes.

    Raises:
        Refusal: there is no such thing, or none for these attributes or inputs.
    """
    make = OPERATORS.get(node.op_type)
    if make is None:
        raise Refusal("is not supported")
    settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    made = make(file, node, settings)
    if settings:  # whatever was not taken
        raise Refusal(f"with {', '.join(f'{name}={value}' for name, value in settings.items())} is not supported")
    return made


def _convolution(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    weight = file.constant(node, 1)
    if weight.ndim != 4:
        raise Refusal(f"with weights of {weight.ndim} dimensions is not supported")
    outputs, inputs, *kernel = weight.shape
    bias = file.constant(node, 2) if _has(node, 2) else np.zeros(outputs)
    _take(settings, "kernel_shape", kernel)
    window = _window(file, node, settings, kernel)
    dilation, groups = tuple(settings.pop("dilations", (1, 1))), settings.pop("group", 1)
    made = nn.utils.skip_init(
        nn.Conv2d, inputs * groups, outputs, tuple(kernel), **window, dilation=dilation, groups=groups
    )
    return _filled(made, weight=weight, bias=bias)


def _gemm(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    alpha, beta, turned = settings.pop("alpha", 1.0), settings.pop("beta", 1.0), settings.pop("transB", 0)
    _take(settings, "transA", 0)
    weight = file.constant(node, 1) if turned else file.constant(node, 1).T
    return _linear(file, node, alpha * weight, beta * file.constant(node, 2) if _has(node, 2) else np.zeros(1))


def _matmul(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    return _linear(file, node, file.constant(node, 1).T, np.zeros(1))


def _linear(file: File, node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    if weight.ndim != 2 or len(file.shape(node.input[0])) not in (0, 2):
        raise Refusal("of other tensors than (n, features) is not supported")
    outputs, inputs = weight.shape
    if bias.size not in (1, outputs):
        raise Refusal("with a bias that differs from image to image is not supported")
    made = nn.utils.skip_init(nn.Linear, inputs, outputs)
    return _filled(made, weight=weight, bias=np.broadcast_to(bias.reshape(-1), outputs))


def _batch_norm(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    for name, usual in (("training_mode", 0), ("spatial", 1), ("is_test", 1)):
        _take(settings, name, usual)
    settings.pop("momentum", None)
    gain, bias, mean, variance = (file.constant(node, position) for position in range(1, 5))
    kind = nn.BatchNorm1d if len(file.shape(node.input[0])) == 2 else nn.BatchNorm2d
    made = kind(len(gain), eps=settings.pop("epsilon", 1e-5))
    return _filled(made, weight=gain, bias=bias, running_mean=mean, running_var=variance)


def _relu(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    return nn.ReLU()


def _clip(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    bounds = [settings.pop("min", None), settings.pop("max", None)]
    for position in (1, 2):
        if _has(node, position):
            bounds[position - 1] = float(file.constant(node, position))
    if bounds == [0, 6]:
        return nn.ReLU6()
    if bounds[0] == 0 and (bounds[1] is None or bounds[1] >= np.finfo(np.float32).max):
        return nn.ReLU()
    raise Refusal(f"from {bounds[0]} to {bounds[1]} is not supported, from 0 to 6 it is")


def _max_pool(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    settings.pop("storage_order", None)  # of the second output, which nothing may read
    kernel, dilation = tuple(settings.pop("kernel_shape")), tuple(settings.pop("dilations", (1, 1)))
    ceil, stride = bool(settings.pop("ceil_mode", 0)), tuple(settings.get("strides", (1, 1)))
    if ceil and any(step > taps for step, taps in zip(stride, kernel, strict=True)):
        raise Refusal("with ceil_mode=1 and strides above the kernel is not supported")
    if not ceil and _cuts_windows(file, node, settings, kernel, stride):
        ceil = bool(settings.pop("pads"))
    window = _window(file, node, settings, kernel)
    return nn.MaxPool2d(kernel, **window, dilation=dilation, ceil_mode=ceil)


def _cuts_windows(
    file: File, node: onnx.NodeProto, settings: Settings, kernel: Sequence[int], stride: Sequence[int]
) -> bool:
    """Whether pads at the end do what a ceil mode does: add the windows that the border cuts, and nothing else."""
    pads, sides = settings.get("pads", [0] * 4), file.shape(node.input[0])[2:]
    if len(kernel) != 2 or any(pads[:2]) or not any(pads[2:]) or len(sides) != 2 or None in sides:
        return False
    return all(
        step <= taps and (side + pad - taps) // step == -((taps - side) // step)
        for side, pad, taps, step in zip(sides, pads[2:], kernel, stride, strict=True)
    )


def _average_pool(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    kernel, stride = tuple(settings.pop("kernel_shape")), tuple(settings.get("strides", (1, 1)))
    sides = file.shape(node.input[0])[2:]
    if settings.pop("ceil_mode", 0):
        known = len(sides) == len(kernel) and None not in sides and not any(settings.get("pads", ()))
        if not known or any((side - taps) % step for side, taps, step in zip(sides, kernel, stride, strict=True)):
            raise Refusal("with ceil_mode=1 is not supported where the border cuts windows")
    _take(settings, "dilations", [1, 1])
    counted = bool(settings.pop("count_include_pad", 0))
    window = _window(file, node, settings, kernel)
    if kernel == sides and not any(window["padding"]):
        return nn.AdaptiveAvgPool2d(1)
    return nn.AvgPool2d(kernel, **window, **({"count_include_pad": counted} if any(window["padding"]) else {}))


def _global_pool(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


def _flatten(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    _take_axis(settings, len(file.shape(node.input[0])), 1)
    return nn.Flatten()


def _reshape(file: File, node: onnx.NodeProto, settings: Settings) -> nn.Module:
    settings.pop("allowzero", None)  # images are never empty
    target, before = [int(size) for size in file.constant(node, 1)], file.shape(node.input[0])
    features = math.prod(before[1:]) if before and None not in before[1:] else None
    match target:
        case [0, -1]:
            return nn.Flatten()
        case [first, size] if first in (-1, 0, *before[:1]) and size in (features, -1 if first != -1 else features):
            return nn.Flatten()
    raise Refusal(f"to {target} is not supported, to all features of each image it is")


def _concatenation(file: File, node: onnx.NodeProto, settings: Settings) -> Counterpart:
    _take_axis(settings, len(file.shape(node.output[0])))
    return torch.cat


def _addition(file: File, node: onnx.NodeProto, settings: Settings) -> Counterpart:
    if len(node.input) != 2:
        raise Refusal(f"of {len(node.input)} tensors is not supported, of 2 it is")
    first, second = (file.shape(name) for name in node.input)
    if first != second:
        raise Refusal(f"of shapes {first} and {second} is not supported")
    return operator.add


def _dropout(file: File, node: onnx.NodeProto, settings: Settings) -> None:
    settings.pop("ratio", None)
    settings.pop("seed", None)
    _take(settings, "is_test", 1)
    if _has(node, 2) and bool(file.constant(node, 2)):
        raise Refusal("in training mode is not supported")


def _identity(file: File, node: onnx.NodeProto, settings: Settings) -> None:
    return


def _softmax(file: File, node: onnx.NodeProto, settings: Settings) -> None:
    _take_axis(settings, len(file.shape(node.input[0])), 1 if file.opset < 13 else -1)
    if node.output[0] != file.graph.output[0].name:
        raise Refusal("is not supported, but as what gives the output")


OPERATORS: dict[str, Callable[[File, Any, Settings], Counterpart]] = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Relu": _relu,
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "Concat": _concatenation,
    "Add": _addition,
    "Sum": _addition,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Dropout": _dropout,
    "Identity": _identity,
    "Softmax": _softmax,
}


def _window(file: File, node: onnx.NodeProto, settings: Settings, kernel: Sequence[int]) -> dict[str, Any]:
    """Stride and padding of a convolution or a pool, as torch takes them."""
    if len(kernel) != 2:
        raise Refusal(f"over {len(kernel)} axes is not supported")
    stride, auto = tuple(settings.pop("strides", (1, 1))), settings.pop("auto_pad", b"NOTSET").decode()
    pads = list(settings.pop("pads", [0] * 4))
    if auto.startswith("SAME"):
        sides = file.shape(node.input[0])[2:]
        if len(sides) != 2 or None in sides or tuple(settings.get("dilations", (1, 1))) != (1, 1):
            raise Refusal(f"with auto_pad={auto} is not supported where the input's size is open, or with dilations")
        whole = [
            max(0, (-(-side // step) - 1) * step + taps - side)
            for side, taps, step in zip(sides, kernel, stride, strict=True)
        ]
        smaller, larger = [pad // 2 for pad in whole], [pad - pad // 2 for pad in whole]
        pads = smaller + larger if auto == "SAME_UPPER" else larger + smaller
    if pads[:2] != pads[2:]:
        raise Refusal(f"with pads={pads} is not supported: they must be the same on both sides")
    return {"stride": stride, "padding": tuple(pads[:2])}


def _filled(module: nn.Module, **arrays: np.ndarray) -> nn.Module:
    """The module with these parameters and buffers."""
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(module, name).copy_(torch.tensor(np.asarray(array, np.float32)))
    return module


def _has(node: onnx.NodeProto, position: int) -> bool:
    """Whether a node has an optional input."""
    return len(node.input) > position and bool(node.input[position])


def _take(settings: Settings, name: str, usual: Any) -> None:
    """Takes a setting with its only value; a node with another keeps it, and is refused."""
    if settings.get(name, usual) == usual:
        settings.pop(name, None)


def _take_axis(settings: Settings, rank: int, usual: int | None = None) -> None:
    """Takes the axis if it is that of the channels or classes."""
    axis = settings.setdefault("axis", usual)
    if axis == 1 or (rank and axis == 1 - rank):
        del settings["axis"]
