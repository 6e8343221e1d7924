"""Reads a float network from an ONNX file, as a torch module with the weights inside. Nothing in the file is run.

A node becomes the torch module that computes the same. What has none is refused, all of it at once, by node, operator
and attribute. Weights may come from nodes that compute constants. A Softmax that gives the output is left out, since
teachers give logits.
"""

from __future__ import annotations

import importlib.util
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from approx_env.errors import InputError

if TYPE_CHECKING:
    import onnx

CONSTANT = ("Constant", "ConstantOfShape", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Cast")
LARGEST_CONSTANT = 2**28  # numbers in a tensor that a node makes up: a small file must not fill the memory
CHANNELS = 3
RESERVED = {*dir(nn.Module()), "image_size", "steps", "note"}  # names that no module of a network may have
IMAGES = "images"  # name of the tensor that a network takes
# Name of a tensor, what gives it (a module by its name, or a function), and the tensors that this reads.
Step = tuple[str, str | Callable[..., torch.Tensor], tuple[str, ...]]


class Network(nn.Module):
    """Torch modules, concatenations and additions, run in the order of an ONNX file's nodes."""

    def __init__(self, image_size: int, modules: dict[str, nn.Module], steps: list[Step], note: str):
        super().__init__()
        self.image_size, self.steps, self.note = image_size, steps, note
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(n, 3, image_size, image_size) float` -> logits `(n, classes) float`."""
        tensors = {IMAGES: images}
        for name, run, sources in self.steps:
            read = [tensors[source] for source in sources]
            if run is torch.cat:
                tensors[name] = torch.cat(read, 1)
            else:
                tensors[name] = (getattr(self, run) if isinstance(run, str) else run)(*read)
        return tensors[name]


def read(path: Path) -> Network:
    """The network of an ONNX file. Its `note` says what was left out, if anything.

    Raises:
        InputError: the package onnx is missing; the file cannot be read, is no valid model, or does what no torch
            module here does, with each such node.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError(f"--model {path} needs the package onnx: pip install 'tapsearch[export]'")
    return _Reader(path, _loaded(path)).network()


def _loaded(path: Path) -> onnx.ModelProto:
    """The model with all its data, checked by onnx."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import external_data_helper

    try:
        model = onnx.load(path, load_external_data=False)
        tensors = [each for each in model.graph.initializer if external_data_helper.uses_external_data(each)]
        for tensor in tensors:
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            if not (path.parent / place).resolve().is_relative_to(path.parent.resolve()):
                raise InputError(
                    f"--model {path}: the data of '{tensor.name}' must lie in the model's folder, got {place}"
                )
        onnx.checker.check_model(str(path))
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except InputError:
        raise
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"--model {path} cannot be read as an ONNX model ({text}): export it anew") from error
    return model


class _Refusal(Exception):
    """What of a node has no counterpart."""


class _Reader:
    """One file on its way to a module: visits the nodes once, in the file's order, which is one of execution."""

    def __init__(self, path: Path, model: onnx.ModelProto):
        from onnx import numpy_helper, shape_inference

        self.path, self.graph = path, model.graph
        self.opsets = model.opset_import
        inferred = shape_inference.infer_shapes(model).graph
        self.shapes = {
            each.name: _dimensions(each) for each in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self.constants = {each.name: numpy_helper.to_array(each) for each in self.graph.initializer}
        self.readers: dict[str, int] = defaultdict(int)  # of a tensor: how many nodes read it
        for node in self.graph.node:
            for name in node.input:
                self.readers[name] += 1
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.tensors: dict[str, str] = {}  # names in the file -> the step's name
        self.unknown: set[str] = set()  # tensors of refused nodes
        self.biased: dict[str, nn.Module] = {}  # what gave a tensor, if a bias may still be added to it
        self.refused: dict[str, list[str]] = defaultdict(list)  # what is wrong -> nodes
        self.note = ""

    def network(self) -> Network:
        """The module; errors of `read`."""
        side = self._visit_input()
        for node in self.graph.node:
            try:
                self._visit(node)
            except _Refusal as refusal:
                self.refused[f"{node.op_type} {refusal}"].append(node.name or node.output[0])
                self.unknown |= set(node.output)  # what follows is not to be blamed for this one
                self.tensors |= dict.fromkeys(node.output, IMAGES)
        problems = [f"--model {self.path}: {what}: in {', '.join(nodes)}" for what, nodes in self.refused.items()]
        if len(self.graph.output) != 1:
            problems.append(f"--model {self.path} must have one output, the logits, got {len(self.graph.output)}")
        elif self.graph.output[0].name not in self.tensors or not self.steps:
            problems.append(f"--model {self.path} must give an output that is computed from the images")
        if problems:
            raise InputError(problems)
        last = self.graph.output[0].name
        if len(self.shapes.get(last) or ()) == 4:
            self._call("logits", nn.Flatten(), self.tensors[last])
        elif self.tensors[last] != self.steps[-1][0]:
            raise InputError(f"--model {self.path}: its output '{last}' must be what runs last: export it anew")
        return Network(side, self.modules, self.steps, self.note)

    def _visit_input(self) -> int:
        """Binds the images, and gives their side."""
        inputs = [each for each in self.graph.input if each.name not in self.constants]
        shapes = [self.shapes[each.name] for each in inputs]
        fits = len(shapes) == 1 and len(shapes[0] or ()) == 4 and shapes[0][1] == CHANNELS
        if not fits or shapes[0][2] is None or shapes[0][2] != shapes[0][3]:
            told = ", ".join(f"{each.name} {shape}" for each, shape in zip(inputs, shapes, strict=True)) or "none"
            raise InputError(
                f"--model {self.path} must have one input of shape (n, {CHANNELS}, side, side), side a number, "
                f"got {told}: export it for such images"
            )
        self.tensors[inputs[0].name] = IMAGES
        return shapes[0][2]

    def _visit(self, node: onnx.NodeProto) -> None:
        from onnx import helper

        if node.domain not in ("", "ai.onnx"):
            raise _Refusal(f"of domain {node.domain} is not supported")
        given = [name for name in node.input if name]
        if node.op_type in CONSTANT and all(name in self.constants for name in given):
            self._fold(node)
            return
        visit = VISITS.get(node.op_type)
        if visit is None:
            raise _Refusal("is not supported")
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        result = visit(self, node, settings)
        if settings:  # whatever it did not take
            raise _Refusal(f"with {_listed(settings)} is not supported")
        self.tensors[node.output[0]] = result

    def _fold(self, node: onnx.NodeProto) -> None:
        """Computes a constant by onnx's reference."""
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        if node.op_type == "ConstantOfShape" and math.prod(map(int, self.constants[node.input[0]])) > LARGEST_CONSTANT:
            raise _Refusal(f"of more than {LARGEST_CONSTANT} numbers is not supported")
        inputs, outputs = ([helper.make_empty_tensor_value_info(name) for name in names if name]
                           for names in (node.input, node.output))  # fmt: skip
        graph = helper.make_graph([node], "constant", inputs, outputs)
        alone = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.opsets))
        values = alone.run(None, {name: self.constants[name] for name in node.input if name})
        self.constants |= dict(zip(node.output, values, strict=True))

    # What nodes become. Each takes the settings that it knows out of `settings`.

    def _convolution(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        weight = self._constant(node, 1)
        if weight.ndim != 4:
            raise _Refusal(f"with weights of {weight.ndim} dimensions is not supported")
        bias = self._constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(len(weight))
        window = self._window(node, settings, weight.shape[2:])
        _take(settings, "kernel_shape", [*weight.shape[2:]], [*weight.shape[2:]])
        dilation, groups = tuple(settings.pop("dilations", (1, 1))), settings.pop("group", 1)
        made = nn.utils.skip_init(
            nn.Conv2d,
            weight.shape[1] * groups,
            len(weight),
            weight.shape[2:],
            **window,
            dilation=dilation,
            groups=groups,
        )
        return self._weighted(node, made, weight, bias)

    def _gemm(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        alpha, beta = settings.pop("alpha", 1.0), settings.pop("beta", 1.0)
        weight = self._constant(node, 1)
        _take(settings, "transA", 0, 0)
        weight = alpha * (weight if settings.pop("transB", 0) else weight.T)
        bias = beta * self._constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        return self._linear(node, weight, bias)

    def _matmul(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        return self._linear(node, self._constant(node, 1).T, np.zeros(1))

    def _linear(self, node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray) -> str:
        if weight.ndim != 2 or len(self.shapes.get(node.input[0]) or (0, 0)) != 2:
            raise _Refusal("of other tensors than (n, features) is not supported")
        made = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        return self._weighted(node, made, weight, np.broadcast_to(bias.reshape(-1), len(weight)))

    def _weighted(self, node: onnx.NodeProto, made: nn.Module, weight: np.ndarray, bias: np.ndarray) -> str:
        with torch.no_grad():
            made.weight.copy_(torch.tensor(weight))
            made.bias.copy_(torch.tensor(bias))
        if self.readers[node.output[0]] == 1:
            self.biased[node.output[0]] = made
        return self._run(node, made)

    def _batch_norm(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        for name, value in (("training_mode", 0), ("spatial", 1), ("is_test", 1)):
            _take(settings, name, value, value)
        settings.pop("momentum", None)
        gain, bias, mean, variance = (self._constant(node, position) for position in range(1, 5))
        kind = nn.BatchNorm1d if len(self.shapes.get(node.input[0]) or ()) == 2 else nn.BatchNorm2d
        made = kind(len(gain), eps=settings.pop("epsilon", 1e-5))
        parts = ((made.weight, gain), (made.bias, bias), (made.running_mean, mean), (made.running_var, variance))
        with torch.no_grad():
            for target, array in parts:
                target.copy_(torch.tensor(array))
        return self._run(node, made)

    def _clip(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        bounds = [settings.pop("min", None), settings.pop("max", None)]
        for position in range(1, len(node.input)):
            bounds[position - 1] = float(self._constant(node, position)) if node.input[position] else None
        low, high = bounds
        if low != 0 or (high not in (6, None) and high < np.finfo(np.float32).max):
            raise _Refusal(f"from {low} to {high} is not supported, from 0 to 6 it is")
        return self._run(node, nn.ReLU6() if high == 6 else nn.ReLU())

    def _max_pool(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        settings.pop("storage_order", None)  # of the second output, which nothing reads
        kernel = settings.pop("kernel_shape")
        dilation = tuple(settings.pop("dilations", (1, 1)))
        ceil = bool(settings.pop("ceil_mode", 0))
        stride = tuple(settings.get("strides", (1, 1)))
        if ceil and any(step > taps for step, taps in zip(stride, kernel, strict=True)):
            raise _Refusal("with ceil_mode=1 and strides above the kernel is not supported")
        if not ceil and self._pads_as_ceil(node, settings, kernel, stride):
            ceil = bool(settings.pop("pads"))
        window = self._window(node, settings, kernel)
        return self._run(node, nn.MaxPool2d(tuple(kernel), **window, dilation=dilation, ceil_mode=ceil))

    def _pads_as_ceil(self, node: onnx.NodeProto, settings: dict[str, Any], kernel, stride) -> bool:
        """Whether pads, all at the end, add just the window that the border cuts: what a ceil mode adds."""
        pads, sides = settings.get("pads", [0] * 4), (self.shapes.get(node.input[0]) or ())[2:]
        if len(pads) != 4 or len(kernel) != 2 or any(pads[:2]) or not any(pads[2:]) or None in sides or len(sides) != 2:
            return False
        return all(
            step <= taps and (side + pad - taps) // step == -((taps - side) // step)
            for side, pad, taps, step in zip(sides, pads[2:], kernel, stride, strict=True)
        )

    def _average_pool(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        kernel, stride = tuple(settings.pop("kernel_shape")), tuple(settings.get("strides", (1, 1)))
        sides = tuple((self.shapes.get(node.input[0]) or ())[2:])
        if settings.pop("ceil_mode", 0):
            whole = [None not in sides and (side - taps) % step == 0
                     for side, taps, step in zip(sides, kernel, stride, strict=True)]  # fmt: skip
            if not whole or not all(whole) or any(settings.get("pads", ())):
                raise _Refusal("with ceil_mode=1 is not supported where windows are cut")
        _take(settings, "dilations", [1, 1], [1, 1])
        with_pad = bool(settings.pop("count_include_pad", 0))
        window = self._window(node, settings, kernel)
        if kernel == sides and not any(window["padding"]):
            return self._run(node, nn.AdaptiveAvgPool2d(1))
        padded = {"count_include_pad": with_pad} if any(window["padding"]) else {}
        return self._run(node, nn.AvgPool2d(kernel, **window, **padded))

    def _global_pool(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        return self._run(node, nn.AdaptiveAvgPool2d(1))

    def _flatten(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        axis = settings.pop("axis", 1)
        if axis not in (1, 1 - len(self.shapes.get(node.input[0]) or ())):
            raise _Refusal(f"with axis={axis} is not supported, with axis=1 it is")
        return self._run(node, nn.Flatten())

    def _reshape(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        settings.pop("allowzero", None)  # a 0 that is none of an empty tensor's means the same either way
        target = [int(size) for size in self._constant(node, 1)]
        before = self.shapes.get(node.input[0]) or ()
        features = None if None in before[1:] else math.prod(before[1:])
        first = target and target[0] in (-1, 0, before[0] if before else None)
        if len(target) != 2 or not first or target[1] not in (-1, features) or target == [-1, -1]:
            raise _Refusal(f"to {target} is not supported, to all features of each image it is")
        return self._run(node, nn.Flatten())

    def _concatenation(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        axis = settings.pop("axis")
        if axis not in (1, 1 - len(self.shapes.get(node.output[0]) or ())):
            raise _Refusal(f"with axis={axis} is not supported, with axis=1 it is")
        return self._step(torch.cat, *node.input)

    def _addition(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        constant = [name for name in node.input if name in self.constants]
        if len(node.input) != 2 or len(constant) == 2:
            raise _Refusal(f"of {len(node.input)} tensors is not supported")
        if constant:
            return self._add_bias(node, constant[0])
        shapes = [self.shapes.get(name) for name in node.input]
        if shapes[0] != shapes[1]:
            raise _Refusal(f"of shapes {shapes[0]} and {shapes[1]} is not supported")
        return self._step(operator.add, *node.input)

    def _add_bias(self, node: onnx.NodeProto, constant: str) -> str:
        """Puts a constant, one number a channel, into the bias of the convolution or linear layer before."""
        (source,) = (name for name in node.input if name != constant)
        if source in self.unknown:
            return self._tensor(source)
        made, value = self.biased.get(source), self.constants[constant]
        places = () if isinstance(made, nn.Linear) else (1, 1)
        fits = (1,) * (value.ndim - 1 - len(places)) + (value.size, *places)
        if made is None or value.size not in (1, len(made.bias)) or (value.size > 1 and value.shape != fits):
            raise _Refusal(
                "of a constant is not supported, but as the bias of a convolution or a linear layer before it"
            )
        with torch.no_grad():
            made.bias.add_(torch.tensor(value.reshape(-1)))
        if self.readers[node.output[0]] == 1:
            self.biased[node.output[0]] = made
        return self._tensor(source)

    def _dropout(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        settings.pop("ratio", None)
        settings.pop("seed", None)
        _take(settings, "is_test", 1, 1)
        if len(node.input) > 2 and node.input[2] and bool(self._constant(node, 2)):
            raise _Refusal("with training_mode is not supported")
        return self._tensor(node.input[0])

    def _softmax(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        rank = len(self.shapes.get(node.input[0]) or (0, 0))
        default = 1 if max(each.version for each in self.opsets if each.domain in ("", "ai.onnx")) < 13 else -1
        axis = settings.pop("axis", default)
        if node.output[0] != self.graph.output[0].name or axis not in (1, 1 - rank):
            raise _Refusal("is not supported, but over the classes at the end")
        self.note = f"{self.path}: the Softmax at the end is left out, since a teacher gives logits"
        return self._tensor(node.input[0])

    def _window(self, node: onnx.NodeProto, settings: dict[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
        """Stride and padding of a convolution or a pool, as torch takes them."""
        if len(kernel) != 2:
            raise _Refusal(f"over {len(kernel)} axes is not supported")
        stride = tuple(settings.pop("strides", (1, 1)))
        pads, auto = list(settings.pop("pads", [0] * 4)), settings.pop("auto_pad", b"NOTSET").decode()
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            sides = (self.shapes.get(node.input[0]) or (None,))[2:]
            if not sides or None in sides or tuple(settings.get("dilations", (1, 1))) != (1, 1):
                raise _Refusal(f"with auto_pad={auto} is not supported for this input")
            whole = [max(0, (-(-side // step) - 1) * step + taps - side)
                     for side, taps, step in zip(sides, kernel, stride, strict=True)]  # fmt: skip
            smaller, larger = [pad // 2 for pad in whole], [pad - pad // 2 for pad in whole]
            pads = smaller + larger if auto == "SAME_UPPER" else larger + smaller
        elif auto not in ("NOTSET", "VALID"):
            raise _Refusal(f"with auto_pad={auto} is not supported")
        if pads[:2] != pads[2:]:
            raise _Refusal(f"with pads={pads} is not supported: they must be the same on both sides")
        return {"stride": stride, "padding": tuple(pads[:2])}

    def _constant(self, node: onnx.NodeProto, position: int) -> np.ndarray:
        name = node.input[position]
        if name not in self.constants:
            raise _Refusal(f"whose input '{name}' is computed is not supported: it must be a constant")
        return self.constants[name]

    def _tensor(self, name: str) -> str:
        if name not in self.tensors:
            raise _Refusal(f"of '{name}', a constant or a second output, is not supported")
        return self.tensors[name]

    def _run(self, node: onnx.NodeProto, module: nn.Module) -> str:
        return self._call(node.name or node.output[0], module, self._tensor(node.input[0]))

    def _call(self, name: str, module: nn.Module, source: str) -> str:
        """A step that runs a module, under a free name that Python takes."""
        name = re.sub(r"\W+", "_", name)
        while name in self.modules or not name.isidentifier() or name in RESERVED:
            name = f"x{name}"
        self.modules[name] = module
        self.steps.append((f"{len(self.steps)}", name, (source,)))
        return self.steps[-1][0]

    def _step(self, run: Callable[..., torch.Tensor], *names: str) -> str:
        self.steps.append((f"{len(self.steps)}", run, tuple(self._tensor(name) for name in names)))
        return self.steps[-1][0]


VISITS: dict[str, Callable[[_Reader, Any, dict[str, Any]], str]] = {
    "Conv": _Reader._convolution,
    "Gemm": _Reader._gemm,
    "MatMul": _Reader._matmul,
    "BatchNormalization": _Reader._batch_norm,
    "Relu": lambda reader, node, settings: reader._run(node, nn.ReLU()),
    "Clip": _Reader._clip,
    "MaxPool": _Reader._max_pool,
    "AveragePool": _Reader._average_pool,
    "GlobalAveragePool": _Reader._global_pool,
    "Concat": _Reader._concatenation,
    "Add": _Reader._addition,
    "Sum": _Reader._addition,
    "Flatten": _Reader._flatten,
    "Reshape": _Reader._reshape,
    "Dropout": _Reader._dropout,
    "Identity": lambda reader, node, settings: reader._tensor(node.input[0]),
    "Softmax": _Reader._softmax,
}


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """The shape of a tensor, None where a size is open; None if nothing is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)


def _take(settings: dict[str, Any], name: str, default: Any, wanted: Any) -> None:
    """Takes a setting that has one value only; a node with another keeps it, and is refused."""
    if settings.get(name, default) == wanted:
        settings.pop(name, None)


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
