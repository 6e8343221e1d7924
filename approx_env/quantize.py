"""Makes the INT8 network from a trained float module.

The module is traced with torch.fx, dropout removed, batch norm folded into the convolution before it, ReLU into the
weighted node before it. Activation scales come from calibration images: the clip that minimises the mean squared
error of the codes. Tensors that are concatenated share one scale, so that the concatenation is exact. So do two
tensors that are added, and their sum: a bypass addition is then the integer sum of two codes, cut at 255, without a
multiplication or a rounding; the scale is fitted on operands and sum together, in which the sum is the widest.

Requantisation is integer (see `network`): the scales of weights are fitted to its multipliers.

Weights are kept 'pair-safe'. x86 cores with AVX2 but without VNNI multiply uint8 by int8 in pairs and saturate the
sum of a pair at 16 bits (oneDNN developer guide, 'Nuances of int8 computations'): 255 * 127 twice is too much. So
each output channel's scale is large enough that neighbouring input channels' weights of one sign add up to at most
128 in magnitude. Then every x86 core, and any hardware with wider accumulators, computes the same integers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from approx_env import data
from approx_env.errors import InputError
from approx_env.network import (
    HIGHEST_MULTIPLIER,
    HIGHEST_SUM,
    HIGHEST_WEIGHT,
    INPUT,
    SHIFT,
    Addition,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Node,
    Site,
    weight_pairs,
)

HIGHEST_BIAS = HIGHEST_SUM // 2
FINEST_LOGITS = 2**12  # multiplier of the last layer's widest channel
MARGIN = 1e-6  # that a multiple may be too small: rounding noise must not choose the next one
LOWEST_WEIGHT = 1e-12  # of a layer whose weights are all 0
SAMPLES = 1_000_000  # activations a tensor that its scale is fitted on, at most
CLIPS = np.linspace(0.2, 1.0, 81)  # candidate clips, as shares of the maximum


def quantize_weight(weight: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Rounds `weight (out, in, ...) float` to pair-safe int8 per output channel.

    A channel's scale is the smallest multiple of `step` that keeps its codes in range. With
    `step = scale / (2**16 * input scale)` that multiple is the integer multiplier of the channel's requantisation, and
    nothing is lost by its rounding: the weights are rounded to the scale that it stands for.

    Args:
        step: of the scales, > 0.

    Returns:
        Codes of the same shape, int8 in -127..127, and multiples `(out,) int32` of `step`.
    """
    magnitude = np.abs(weight).reshape(len(weight), -1).max(1)
    # Two roundings add at most 1 to a pair: 127 before them is at most 128 after.
    wanted = np.maximum(magnitude, weight_pairs(weight)) / HIGHEST_WEIGHT / step
    multiples = np.clip(np.ceil(wanted * (1 - MARGIN)), 1, HIGHEST_MULTIPLIER)
    codes = np.rint(weight / (multiples * step).reshape(-1, *[1] * (weight.ndim - 1)))
    return np.ascontiguousarray(np.clip(codes, -HIGHEST_WEIGHT, HIGHEST_WEIGHT), np.int8), multiples.astype(np.int32)


def rounded(weight: np.ndarray, bias: np.ndarray, input_scale: float, scale: float | None) -> dict[str, Any]:
    """The fields of a weighted node: weight, bias, multiplier, scale and logits.

    Args:
        weight: `(out, in, ...) float`, batch norm folded in.
        bias: `(out,) float`.
        scale: of its output codes; None if it gives logits.
    """
    logits = scale is None
    scale = logit_scale(weight, input_scale) if logits else scale
    step = requantisation_step(scale, input_scale)
    codes, multiplier = quantize_weight(weight, step)
    integers = np.clip(np.rint(bias / (input_scale * step * multiplier)), -HIGHEST_BIAS, HIGHEST_BIAS).astype(np.int32)
    return {"weight": codes, "bias": integers, "multiplier": multiplier, "scale": scale, "logits": logits}


def requantisation_step(scale: float, input_scale: float) -> float:
    """What a multiplier of 1 stands for as a scale of weights, between tensors of codes of these two scales."""
    return scale / (1 << SHIFT) / input_scale


def logit_scale(weight: np.ndarray, input_scale: float) -> float:
    """A scale of logits under which the multipliers of `weight (out, in, ...) float` have FINEST_LOGITS steps."""
    highest = max(np.abs(weight).max(), weight_pairs(weight).max(), LOWEST_WEIGHT) / HIGHEST_WEIGHT
    return float(highest * input_scale * (1 << SHIFT) / FINEST_LOGITS)


def mse_scale(sample: np.ndarray) -> float:
    """Scale of uint8 codes with zero point 0 that minimises the mean squared error on `sample`, values >= 0."""
    values = sample[sample > 0].astype(np.float64)
    if not len(values):
        return 1.0
    counts, edges = np.histogram(values, bins=4096, range=(0, values.max()))
    centres = (edges[:-1] + edges[1:]) / 2
    scales = CLIPS * values.max() / 255
    errors = [(counts * (np.clip(np.rint(centres / s), 0, 255) * s - centres) ** 2).sum() for s in scales]
    return float(scales[int(np.argmin(errors))])


def clipped_maximum_scale(sample: np.ndarray) -> float:
    """Scale of uint8 codes with zero point 0 that leaves one nonzero value in 10,000 of `sample` above code 255."""
    values = sample[sample > 0]
    return float(np.quantile(values, 0.9999)) / 255 if len(values) else 1.0


def quantize(module: nn.Module, images: np.ndarray, **about) -> Network:
    """Turns a float module into an INT8 network: `draft(...).network()`, with the arguments and errors of `draft`."""
    return draft(module, images, **about).network()


def draft(
    module: nn.Module,
    images: np.ndarray,
    *,
    model: str,
    classes: tuple[str, ...],
    layers: Mapping[str, str],
    attention: tuple[str, ...],
    standardised: bool = False,
    scale_of: Callable[[np.ndarray], float] = mse_scale,
) -> Draft:
    """Reads a float module and fits the scales of its activations.

    Args:
        module: built of convolutions, batch norms, linear layers, ReLUs, max pools, global average pool, flatten,
            dropout, channel concatenations and additions; in float32, trained.
        images: calibration images `(n, c, h, w) uint8`.
        model, classes, attention, standardised: as in `Network`.
        layers: for each approximated layer the path of its record point, an `nn.Identity` in `module`.
        scale_of: gives the scale of codes from a sample of the activations that share it.

    Raises:
        InputError: the module does something that the network cannot hold.
    """
    try:
        graph = fx.symbolic_trace(module.eval())
    except Exception as error:  # torch.fx raises what the traced code runs into
        raise InputError(
            f"{model} cannot be traced by torch.fx ({error}): its forward must have no control flow"
        ) from error
    reader = _Reader(graph, {path: layer for layer, path in layers.items()})
    missing = set(layers) - set(reader.found)
    if missing:
        raise InputError(f"record points must be nn.Identity modules that the forward pass runs: {sorted(missing)}")
    pixels = data.standardise(images) if standardised else images
    sharing = _sharing(reader.found)
    sources = [name for name, parts in reader.found.items() if "float_weight" in parts or parts["kind"] is Addition]
    wanted = {reader.last[name]: sharing[name] for name in sources if sharing[name] is not None}
    samples = _sample(graph, wanted, pixels)
    fitted = {group: scale_of(sample) for group, sample in samples.items()} | {INPUT: data.PIXEL_SCALE}
    scales = {name: fitted.get(group) for name, group in sharing.items()}
    header = {
        "model": model,
        "classes": classes,
        "input_shape": tuple(images.shape[1:]),
        "input_scale": data.PIXEL_SCALE,
        "input_zero_point": data.PIXEL_ZERO_POINT,
        "attention": attention,
        "standardised": standardised,
    }
    return Draft(header, reader.found, sharing, scales)


@dataclass
class Draft:
    """A network whose weights are still float, batch norm folded in: `network()` rounds them."""

    header: dict[str, Any]  # the fields of `Network` but its nodes
    parts: dict[str, dict]  # name -> 'kind' and fields of the node; float_weight, float_bias of weighted ones
    sharing: dict[str, str | None]  # each tensor and the input -> a name of those that share its scale; None: float
    scales: dict[str, float | None]  # of each tensor and the input; None: float

    def network(self) -> Network:
        """The INT8 network."""
        nodes: list[Node] = []
        for name, parts in self.parts.items():
            fields = {key: value for key, value in parts.items() if key not in ("kind", "float_weight", "float_bias")}
            if "float_weight" in parts:
                input_scale = self.scales[parts["inputs"][0]]
                fields |= rounded(parts["float_weight"], parts["float_bias"], input_scale, self.scales[name])
            nodes.append(parts["kind"](name=name, **fields))
        return Network(**self.header, nodes=tuple(nodes))


def _sharing(found: Mapping[str, dict]) -> dict[str, str | None]:
    """For each tensor of codes a name of those that share its scale; None of float tensors, behind the last weights.

    Codes pass unchanged through pools, record points and flattening; concatenated tensors, and those that are added
    with their sum, must have one scale, so that neither needs a multiplication.
    """
    last = [name for name, parts in found.items() if "float_weight" in parts][-1]
    shared: dict[str, str | None] = {INPUT: INPUT}
    for name, parts in found.items():
        if "float_weight" in parts:
            shared[name] = None if name == last else name
            continue
        joined = {shared[source] for source in parts["inputs"]}
        if None in joined and (joined != {None} or parts["kind"] not in (GlobalAveragePool, Flatten)):
            raise InputError(f"'{name}' follows the last weighted layer, whose output is float: move it before")
        if INPUT in joined and parts["kind"] in (Concatenation, Addition):
            raise InputError(f"'{name}' must join outputs of convolutions or linear layers, and reads the input itself")
        chosen = shared[parts["inputs"][0]]
        shared[name] = chosen
        shared |= {other: chosen for other, group in shared.items() if group in joined}
    for name, parts in found.items():
        if "float_weight" in parts and name != last and not parts["relu"]:
            raise InputError(f"'{name}' must be followed by a ReLU: its codes have no sign")
    return shared


@torch.inference_mode()
def _sample(
    graph: fx.GraphModule, wanted: Mapping[fx.Node, str], pixels: np.ndarray | torch.Tensor
) -> dict[str, np.ndarray]:
    """Runs the float module on calibration images: up to SAMPLES activations of each set that shares a scale."""
    samples: dict[str, list[np.ndarray]] = {group: [] for group in wanted.values()}

    class Recorder(fx.Interpreter):
        def run_node(self, traced):
            value = super().run_node(traced)
            if traced in wanted:
                batch[wanted[traced]].append(value.flatten())
            return value

    recorder = Recorder(graph)
    for start in range(0, len(pixels), 128):
        batch: dict[str, list[torch.Tensor]] = {group: [] for group in samples}
        recorder.run(data.normalise(pixels[start : start + 128]))
        for group, parts in batch.items():
            together = torch.cat(parts)
            # An odd step meets every channel and position.
            step = max(1, len(together) * max(1, len(pixels) // 128) // SAMPLES) | 1
            samples[group].append(together[::step].numpy())
    return {group: np.concatenate(parts) for group, parts in samples.items()}


class _Reader:
    """Walks the traced graph once and gathers what the nodes will be made of."""

    def __init__(self, graph: fx.GraphModule, record_points: Mapping[str, str]):
        self.modules = dict(graph.named_modules())
        self.record_points = record_points
        self.tensor: dict[fx.Node, str] = {}  # traced node -> name of the tensor that it gives
        self.last: dict[str, fx.Node] = {}  # name of a tensor -> the traced node whose value it finally has
        self.found: dict[str, dict] = {}  # name -> 'kind' and fields of the node
        for traced in graph.graph.nodes:
            self._visit(traced)

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
            axes = [*traced.args[1:], *traced.kwargs.values()]
            self._visit_flatten(traced, traced.name, *(axes or [0]))
        elif traced.target in (operator.add, operator.iadd, torch.add):
            self._visit_addition(traced)
        else:
            raise InputError(f"'{traced.name}' ({traced.op} {traced.target}) has no INT8 counterpart")

    def _visit_addition(self, traced: fx.Node) -> None:
        operands = [self.tensor.get(part) if isinstance(part, fx.Node) else None for part in traced.args]
        if len(operands) != 2 or None in operands or traced.kwargs:
            raise InputError(f"'{traced.name}' must add two tensors")
        self._add(traced, traced.name, Addition, inputs=tuple(operands))

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
            self._visit_flatten(traced, path, module.start_dim, module.end_dim)
        else:
            raise InputError(f"'{path}' ({type(module).__name__}) has no INT8 counterpart")

    def _visit_flatten(self, traced: fx.Node, name: str, start: int, end: int = -1) -> None:
        if (start, end) not in ((1, -1), (1, 3)):
            raise InputError(f"'{name}' flattens from dimension {start} to {end}: only all but the first (1 to -1) can be")
        source = self.tensor[traced.args[0]]
        if self.found.get(source, {}).get("kind") is GlobalAveragePool:  # gives (n, c) already
            self._bind(traced, source)
        else:
            self._add(traced, name, Flatten)

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


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _bias(module: nn.Module) -> np.ndarray:
    return np.zeros(len(module.weight)) if module.bias is None else _array(module.bias)


def _square(value: int | tuple[int, ...]) -> int | None:
    """The one number of a square setting; None where the sides differ."""
    sides = {value} if isinstance(value, int) else set(value)
    return sides.pop() if len(sides) == 1 else None
