"""Makes the INT8 network from a trained float module.

The module is traced with torch.fx, dropout removed, batch norm folded into the convolution before it, ReLU into the
weighted node before it. Activation scales come from calibration images: the clip that minimises the mean squared
error of the codes. Tensors that are concatenated share one scale, so that the concatenation is exact.

Weights are kept 'pair-safe'. x86 cores with AVX2 but without VNNI multiply uint8 by int8 in pairs and saturate the
sum of a pair at 16 bits (oneDNN developer guide, 'Nuances of int8 computations'): 255 * 127 twice is too much. So
each output channel's scale is large enough that neighbouring input channels' weights of one sign add up to at most
128 in magnitude. Then every x86 core, and any hardware with wider accumulators, computes the same integers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from approx_env import data
from approx_env.errors import InputError
from approx_env.network import (
    INPUT,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Node,
    Site,
)

HIGHEST_WEIGHT = 127
HIGHEST_PAIR = 128  # 255 * 128 < 2**15
SAMPLES = 1_000_000  # activations a tensor that its scale is fitted on, at most
CLIPS = np.linspace(0.2, 1.0, 81)  # candidate clips, as shares of the maximum


def weight_pairs(weight: np.ndarray) -> np.ndarray:
    """Largest magnitude of the same-signed sum of two neighbouring input channels, per output channel.

    Args:
        weight: `(out, in, ...)`, any number type.

    Returns:
        `(out,)`, of the same type (int64 for integers).
    """
    wide = weight.astype(np.int64) if np.issubdtype(weight.dtype, np.integer) else weight
    wide = wide.reshape(*wide.shape[:2], -1)
    even, odd = wide[:, 0::2], wide[:, 1::2]
    if odd.shape[1] < even.shape[1]:
        odd = np.concatenate([odd, np.zeros_like(even[:, :1])], 1)
    positive = np.maximum(even, 0) + np.maximum(odd, 0)
    negative = np.maximum(-even, 0) + np.maximum(-odd, 0)
    return np.maximum(positive, negative).max((1, 2))


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds `weight (out, in, ...) float` to pair-safe int8 per output channel.

    Returns:
        Codes of the same shape, int8 in -127..127, and scales `(out,) float32`.
    """
    magnitude = np.abs(weight).reshape(len(weight), -1).max(1)
    # Two roundings add at most 1 to a pair: 127 before them is at most 128 after.
    scale = np.maximum(np.maximum(magnitude, weight_pairs(weight)) / HIGHEST_WEIGHT, 1e-12).astype(np.float32)
    codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.ascontiguousarray(np.clip(codes, -HIGHEST_WEIGHT, HIGHEST_WEIGHT), np.int8), scale


def activation_scale(sample: np.ndarray) -> float:
    """Scale of uint8 codes with zero point 0 that minimises the mean squared error on `sample`, values >= 0."""
    values = sample[sample > 0].astype(np.float64)
    if not len(values):
        return 1.0
    counts, edges = np.histogram(values, bins=4096, range=(0, values.max()))
    centres = (edges[:-1] + edges[1:]) / 2
    scales = CLIPS * values.max() / 255
    errors = [(counts * (np.clip(np.rint(centres / s), 0, 255) * s - centres) ** 2).sum() for s in scales]
    return float(scales[int(np.argmin(errors))])


def quantize(
    module: nn.Module,
    images: np.ndarray,
    *,
    model: str,
    classes: tuple[str, ...],
    layers: Mapping[str, str],
    attention: tuple[str, ...],
) -> Network:
    """Turns a float module into an INT8 network.

    Args:
        module: built of convolutions, batch norms, linear layers, ReLUs, max pools, global average pool, flatten,
            dropout and channel concatenations; in float32, trained.
        images: calibration images `(n, c, h, w) uint8`.
        model, classes, attention: as in `Network`.
        layers: for each approximated layer the path of its record point, an `nn.Identity` in `module`.

    Raises:
        InputError: the module does something that the network cannot hold.
    """
    try:
        graph = fx.symbolic_trace(module.eval())
    except Exception as error:  # torch.fx raises what the traced code runs into
        raise InputError(
            f"{model} cannot be traced by torch.fx ({error}): its forward must have no control flow"
        ) from error
    builder = _Builder(graph, {path: layer for layer, path in layers.items()}, images)
    nodes = builder.nodes()
    missing = set(layers) - {node.name for node in nodes}
    if missing:
        raise InputError(f"record points must be nn.Identity modules that the forward pass runs: {sorted(missing)}")
    return Network(model, classes, tuple(images.shape[1:]), data.PIXEL_SCALE, data.PIXEL_ZERO_POINT, nodes, attention)


class _Builder:
    """Walks the traced graph once and gathers nodes; weighted nodes stay float until all scales are known."""

    def __init__(self, graph: fx.GraphModule, record_points: Mapping[str, str], images: np.ndarray):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.record_points = record_points
        self.images = images
        self.tensor: dict[fx.Node, str] = {}  # traced node -> name of the tensor that it gives
        self.last: dict[str, fx.Node] = {}  # name of a tensor -> the traced node whose value it finally has
        self.found: dict[str, dict] = {}  # name -> what the node will be made of

    def nodes(self) -> tuple[Node, ...]:
        for traced in self.graph.graph.nodes:
            self._visit(traced)
        scales = self._scales()
        made: list[Node] = []
        for name, parts in self.found.items():
            kind = parts["kind"]
            fields = {key: value for key, value in parts.items() if key not in ("kind", "float_weight", "float_bias")}
            if kind in (Convolution, Linear):
                weight, weight_scale = quantize_weight(parts["float_weight"])
                input_scale = scales[parts["inputs"][0]]
                bias = np.rint(parts["float_bias"] / (input_scale * weight_scale.astype(np.float64)))
                fields |= {"weight": weight, "weight_scale": weight_scale, "scale": scales[name]}
                fields["bias"] = np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32)
            made.append(kind(name=name, **fields))
        return tuple(made)

    # -- reading the graph

    def _visit(self, traced: fx.Node) -> None:
        if traced.op == "placeholder":
            self._bind(traced, INPUT)
        elif traced.op == "output":
            return
        elif traced.op == "call_module":
            self._visit_module(traced, self.modules[traced.target])
        elif traced.target in (torch.cat, torch.concat):
            axis = traced.args[1] if len(traced.args) > 1 else traced.kwargs.get("dim", 0)
            if axis != 1:
                raise InputError(f"'{traced.name}' concatenates over axis {axis}: only channels (1) can be")
            self._add(traced, traced.name, Concatenation, inputs=tuple(self.tensor[part] for part in traced.args[0]))
        elif traced.target in (torch.relu, F.relu) or traced.target == "relu":
            self._fold_relu(traced)
        elif traced.target is torch.flatten or traced.target == "flatten":
            self._add(traced, traced.name, Flatten)
        elif traced.target in (operator.add, torch.add):
            raise InputError(f"'{traced.name}': additions are not supported in INT8 yet")
        else:
            raise InputError(f"'{traced.name}' ({traced.op} {traced.target}) has no INT8 counterpart")

    def _visit_module(self, traced: fx.Node, module: nn.Module) -> None:
        path = str(traced.target)
        if path in self.record_points:
            self._add(traced, self.record_points[path], Site)
        elif isinstance(module, nn.Identity | nn.Dropout):
            self._bind(traced, self.tensor[traced.args[0]])
        elif isinstance(module, nn.Conv2d):
            self._visit_convolution(traced, path, module)
        elif isinstance(module, nn.Linear):
            self._add(traced, path, Linear, relu=False, float_weight=_array(module.weight), float_bias=_bias(module))
        elif isinstance(module, nn.BatchNorm2d):
            self._fold_batch_norm(traced, module)
        elif isinstance(module, nn.ReLU):
            self._fold_relu(traced)
        elif isinstance(module, nn.MaxPool2d):
            kernel, stride, padding, dilation = (
                _square(value) for value in (module.kernel_size, module.stride, module.padding, module.dilation)
            )
            if kernel is None or stride is None or padding != 0 or dilation != 1:
                raise InputError(f"'{path}': max pools must have square windows, no padding and no dilation")
            self._add(traced, path, MaxPool, kernel=kernel, stride=stride, ceil=module.ceil_mode)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            self._add(traced, path, GlobalAveragePool)
        elif isinstance(module, nn.Flatten):
            if self.found.get(self.tensor[traced.args[0]], {}).get("kind") is GlobalAveragePool:  # gives (n, c) already
                self._bind(traced, self.tensor[traced.args[0]])
            else:
                self._add(traced, path, Flatten)
        else:
            raise InputError(f"'{path}' ({type(module).__name__}) has no INT8 counterpart")

    def _visit_convolution(self, traced: fx.Node, path: str, module: nn.Conv2d) -> None:
        stride, padding = module.stride[0], module.padding[0] if isinstance(module.padding, tuple) else None
        same = module.stride == (stride, stride) and module.padding == (padding, padding)
        if not same or module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            raise InputError(f"'{path}': convolutions must have one group, no dilation, equal strides and zero padding")
        self._add(traced, path, Convolution, stride=stride, padding=padding, relu=False,
                  float_weight=_array(module.weight), float_bias=_bias(module))  # fmt: skip

    def _add(self, traced: fx.Node, name: str, kind: type[Node], **parts) -> None:
        if kind is not Site and (name in self.found or name in self.record_points.values()):
            name = f"{name}:{traced.name}"  # a module that runs twice, or has a layer's name
        if name in self.found:
            raise InputError(f"record point '{name}' runs twice in one forward pass: each must have one place")
        inputs = parts.pop("inputs", None) or (self.tensor[traced.args[0]],)
        self.found[name] = {"kind": kind, "inputs": inputs, **parts}
        self._bind(traced, name)

    def _bind(self, traced: fx.Node, name: str) -> None:
        self.tensor[traced] = name
        self.last[name] = traced

    def _producer(self, traced: fx.Node, what: str) -> dict:
        """The weighted node right before `traced`, which alone may read it."""
        name = self.tensor[traced.args[0]]
        parts = self.found.get(name, {})
        alone = all(len(alias.users) == 1 for alias, bound in self.tensor.items() if bound == name)
        if "float_weight" not in parts or parts["relu"] or not alone:
            raise InputError(f"'{traced.target}': {what} must follow its convolution or linear layer directly")
        return parts

    def _fold_batch_norm(self, traced: fx.Node, norm: nn.BatchNorm2d) -> None:
        parts = self._producer(traced, "batch norm")
        if norm.running_var is None or norm.weight is None:
            raise InputError(f"'{traced.target}': batch norm must be affine and track running statistics")
        gain = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
        parts["float_weight"] = parts["float_weight"] * gain[:, None, None, None]
        parts["float_bias"] = (parts["float_bias"] - _array(norm.running_mean)) * gain + _array(norm.bias)
        self._bind(traced, self.tensor[traced.args[0]])

    def _fold_relu(self, traced: fx.Node) -> None:
        self._producer(traced, "ReLU")["relu"] = True
        self._bind(traced, self.tensor[traced.args[0]])

    # -- scales

    def _scales(self) -> dict[str, float | None]:
        """Scale of every tensor of codes; of weighted nodes, None where the output stays float."""
        weighted = [name for name, parts in self.found.items() if "float_weight" in parts]
        root = {name: name for name in weighted}  # weighted node -> the tensor whose values fix its scale
        for name, parts in self.found.items():
            if parts["kind"] is Concatenation:
                for source in parts["inputs"]:
                    if source not in root:
                        raise InputError(f"'{name}' must concatenate outputs of convolutions, got '{source}'")
                    root[source] = name
        fitted = self._fit({root[name] for name in weighted[:-1]})
        scales: dict[str, float | None] = {INPUT: data.PIXEL_SCALE}
        for name, parts in self.found.items():
            if name in root:
                scales[name] = fitted.get(root[name])
                if scales[name] is not None and not parts["relu"]:
                    raise InputError(f"'{name}' must be followed by a ReLU: its codes have no sign")
            else:
                scales[name] = scales[parts["inputs"][0]]
                if scales[name] is None and parts["kind"] not in (GlobalAveragePool, Flatten):
                    raise InputError(f"'{name}' follows the last weighted layer, whose output is float: move it before")
        return scales

    @torch.inference_mode()
    def _fit(self, names: set[str]) -> dict[str, float]:
        """Runs the float module on the calibration images and fits the scale of each named tensor."""
        wanted = {self.last[name]: name for name in names}
        samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
        steps: dict[str, int] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, traced):
                value = super().run_node(traced)
                if traced in wanted:
                    name, flat = wanted[traced], value.flatten()
                    # An odd step meets every channel and position.
                    step = steps.setdefault(name, max(1, value[0].numel() * total // SAMPLES) | 1)
                    samples[name].append(flat[::step].numpy().copy())
                return value

        total = len(self.images)
        recorder = Recorder(self.graph)
        for start in range(0, total, 128):
            recorder.run(data.normalise(self.images[start : start + 128]))
        return {name: activation_scale(np.concatenate(parts)) for name, parts in samples.items()}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _bias(module: nn.Module) -> np.ndarray:
    return np.zeros(len(module.weight)) if module.bias is None else _array(module.bias)


def _square(value: int | tuple[int, ...]) -> int | None:
    """The one number of a square setting; None where the sides differ."""
    sides = {value} if isinstance(value, int) else set(value)
    return sides.pop() if len(sides) == 1 else None
