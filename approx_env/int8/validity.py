"""What must hold of an INT8 network, so that every engine can run it and computes the same integers.

A network is checked once, when it is made, whoever makes it. Engines rely on every bound here and check none again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from approx_env.int8 import nodes
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Node,
    ScaledAddition,
    Site,
    Weighted,
)
from approx_env.tap import HIGHEST_CODE

if TYPE_CHECKING:
    from approx_env.int8.network import Network

HIGHEST_ENERGY = 2**31  # places x channels^2 of an attention layer: sums of squared energies fit 63 bits
LARGEST = 2**31 - 1  # number of codes of an image in one tensor
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor."""

    shape: Shape  # (c, h, w) or (features,)
    scale: float | None  # of its codes; None of wide integers
    zero_point: int
    wide: float | None = None  # of what a weighted node leaves wide, the scale of 2**16; None of all else


def examine(network: Network) -> tuple[dict[str, Shape], list[str]]:
    """The shape of each tensor by name, and every fault that is found before the first one that hides the rest."""
    problems = list(_of_header(network))
    if problems:
        return {}, problems
    known = {INPUT: Tensor(network.input_shape, float(network.input_scale), network.input_zero_point)}
    for node in network.nodes:
        problems = list(_of_node(node, known, network))
        if problems:
            return {}, [f"node '{node.name}' {problem}" for problem in problems]
        known[node.name] = _output(node, [known[name] for name in node.inputs])
    shapes = {name: tensor.shape for name, tensor in known.items()}
    return shapes, list(_of_layers(network, shapes))


def _whole(value: Any, low: int, high: int = LARGEST) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= value <= high


def _positive(value: Any) -> bool:
    return isinstance(value, float | int | np.floating) and not isinstance(value, bool) and 0 < value < np.inf


def _words(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(word, str) and word for word in value)


def _of_header(network: Network) -> Iterator[str]:
    if not isinstance(network.model, str) or not network.model:
        yield f"the model must be a name, got {network.model!r}"
    if not _words(network.classes) or len(network.classes) < 2 or len(set(network.classes)) < len(network.classes):
        yield f"there must be two or more classes of different names, got {network.classes!r}"
    shape = network.input_shape
    if not isinstance(shape, tuple) or len(shape) not in (1, 3) or not all(_whole(side, 1) for side in shape):
        yield f"the input's shape must be (c, h, w), all positive, got {shape!r}"
    elif np.prod(shape, dtype=object) > LARGEST:
        yield f"the input must have at most {LARGEST} pixels, got {shape!r}"
    if not _positive(network.input_scale):
        yield f"the input's scale must be positive and finite, got {network.input_scale!r}"
    if not _whole(network.input_zero_point, 0, HIGHEST_CODE):
        yield f"the input's zero point must lie in 0..{HIGHEST_CODE}, got {network.input_zero_point!r}"
    if not isinstance(network.standardised, bool):
        yield f"standardised must be true or false, got {network.standardised!r}"
    if not _words(network.attention):
        yield f"attention must name layers, got {network.attention!r}"
    if not isinstance(network.nodes, tuple) or not all(isinstance(node, Node) for node in network.nodes):
        yield "nodes must be nodes"


def _of_layers(network: Network, shapes: dict[str, Shape]) -> Iterator[str]:
    layers = [node.name for node in network.nodes if isinstance(node, Site)]
    if not layers or set(network.attention) - set(layers):
        yield f"attention layers must be approximated layers {tuple(layers)}, got {network.attention}"
        return
    for name in network.attention:
        channels, *space = shapes[name]
        places, channels = (int(np.prod(space)), channels) if space else (channels, 1)
        if places * channels**2 >= HIGHEST_ENERGY:
            yield f"layer '{name}' is too large for exact attention maps: places x channels^2 must be below 2^31"
    added = {name for node in network.nodes if isinstance(node, ScaledAddition) for name in node.inputs}
    logits = [node for node in network.nodes if isinstance(node, Weighted) and node.logits and node.name not in added]
    if len(logits) > 1:
        yield f"only one node may give logits, got {', '.join(repr(node.name) for node in logits)}"


def _of_node(node: Node, known: dict[str, Tensor], network: Network) -> Iterator[str]:
    """What is wrong with a node, whose inputs must all be among those `known`."""
    if not isinstance(node.name, str) or not node.name or not _words(node.inputs):
        yield "must have a name, and name its inputs"
        return
    missing = sorted(set(node.inputs) - set(known))
    if missing or node.name in known:
        fault = f"reads unknown {missing}" if missing else "has a name already taken"
        yield f"{fault}: nodes must be named once and come after their inputs"
        return
    inputs = [known[name] for name in node.inputs]
    wanted = {Addition: 2, ScaledAddition: 2, Concatenation: max(1, len(inputs))}.get(type(node), 1)
    if len(inputs) != wanted:
        yield f"must read {wanted} tensors, got {len(inputs)}"
    elif any(tensor.scale is None for tensor in inputs) and not isinstance(
        node, GlobalAveragePool | Flatten | ScaledAddition
    ):
        yield "reads logits: only a global average pool, a flattening or a scaled addition may"
    else:
        yield from _of_kind(node, inputs)


def _of_kind(node: Node, inputs: list[Tensor]) -> Iterator[str]:
    first = inputs[0]
    spatial = len(first.shape) == 3
    match node:
        case Weighted():
            yield from _of_weights(node, first)
        case MaxPool() | AveragePool():
            ceil = isinstance(node, AveragePool) or isinstance(node.ceil, bool)
            if not spatial or not (_whole(node.kernel, 1) and _whole(node.stride, 1) and ceil):
                yield "must have a kernel and a stride of at least 1, ceil true or false, and read (c, h, w)"
            elif node.kernel > min(first.shape[1:]):
                yield f"must have a window no larger than its input {first.shape}, got {node.kernel}"
        case GlobalAveragePool() if not spatial:
            yield f"must read (c, h, w), got {first.shape}"
        case Concatenation():
            if not all(len(tensor.shape) == 3 and tensor.shape[1:] == first.shape[1:] for tensor in inputs):
                yield f"must join tensors (c, h, w) of one size, got {[tensor.shape for tensor in inputs]}"
            elif any((tensor.scale, tensor.zero_point) != (first.scale, first.zero_point) for tensor in inputs):
                yield "must join tensors of one scale and zero point"
        case Addition():
            second = inputs[1]
            if first.shape != second.shape or first.scale != second.scale or first.zero_point or second.zero_point:
                yield "must add tensors of one shape and scale, whose zero points are 0"
        case ScaledAddition():
            yield from _of_scaled_addition(node, inputs)
        case Site() if first.zero_point:
            yield f"must read codes whose zero point is 0, got {first.zero_point}"


def _of_scaled_addition(node: ScaledAddition, inputs: list[Tensor]) -> Iterator[str]:
    multiplier = node.multiplier
    if not isinstance(multiplier, np.ndarray) or multiplier.dtype != np.int32 or multiplier.shape != (2,):
        yield "must have a multiplier of 2 int32"
    elif not 1 <= multiplier.min() <= multiplier.max() <= nodes.HIGHEST_MULTIPLIER or not _positive(node.scale):
        yield (
            f"must have multipliers in 1..{nodes.HIGHEST_MULTIPLIER} and a positive, finite scale, got "
            f"{multiplier.tolist()}, {node.scale!r}"
        )
    elif inputs[0].shape != inputs[1].shape or any(tensor.zero_point for tensor in inputs):
        yield "must add tensors of one shape, whose zero points are 0"
    elif any(
        tensor.scale is None and (tensor.wide != node.scale or factor != 1)
        for tensor, factor in zip(inputs, multiplier, strict=True)
    ):
        yield "must add wide integers of its own scale, straight from a weighted node, with multiplier 1"


def _of_weights(node: Weighted, source: Tensor) -> Iterator[str]:
    sizes = 4 if isinstance(node, Convolution) else 2
    weight = node.weight
    if not isinstance(weight, np.ndarray) or weight.dtype != np.int8 or weight.ndim != sizes or not weight.size:
        yield f"must have int8 weights of {sizes} dimensions"
        return
    for name in ("bias", "multiplier"):
        array = getattr(node, name)
        if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.shape != weight.shape[:1]:
            yield f"must have a {name} of {len(weight)} int32"
            return
    if not all(isinstance(value, bool) for value in (node.relu, node.logits)):
        yield "must say by true or false whether it has a ReLU, and whether it gives logits"
        return
    wanted = 3 if isinstance(node, Convolution) else 1
    if not _whole(node.groups, 1) or len(weight) % node.groups:
        yield f"must have groups that part its {len(weight)} output channels equally, got {node.groups!r}"
        return
    channels = weight.shape[1] * node.groups
    if len(source.shape) != wanted or source.shape[0] != channels:
        yield f"has weights for {channels} input channels and reads a tensor {source.shape}"
        return
    if isinstance(node, Convolution):
        yield from _of_geometry(node, source.shape)
    yield from _of_bounds(node)


def _of_geometry(node: Convolution, shape: Shape) -> Iterator[str]:
    if not (_whole(node.stride, 1) and _whole(node.padding, 0, HIGHEST_CODE)):
        yield f"must have a stride of at least 1 and a padding in 0..{HIGHEST_CODE}, got {node.stride}, {node.padding}"
    elif any(side + 2 * node.padding < taps for side, taps in zip(shape[1:], node.weight.shape[2:], strict=True)):
        yield f"must have a kernel no larger than its padded input {shape}, got {node.weight.shape[2:]}"


def _of_bounds(node: Weighted) -> Iterator[str]:
    """The bounds within which all number types that engines use are exact."""
    sums, multiplier = nodes.highest_sums(node), node.multiplier.astype(np.int64)
    if sums.max() >= nodes.HIGHEST_SUM or not 1 <= multiplier.min() <= multiplier.max() <= nodes.HIGHEST_MULTIPLIER:
        products = np.zeros(1, np.int64)
    else:
        products = sums * multiplier
    bounds = {
        f"weights of at least {-nodes.HIGHEST_WEIGHT}": node.weight.min() >= -nodes.HIGHEST_WEIGHT,
        f"neighbouring weights of one sign that add up to at most {nodes.HIGHEST_PAIR}":
            nodes.weight_pairs(node.weight).max() <= nodes.HIGHEST_PAIR,
        f"multipliers in 1..{nodes.HIGHEST_MULTIPLIER}":
            multiplier.min() >= 1 and multiplier.max() <= nodes.HIGHEST_MULTIPLIER,
        f"sums below {nodes.HIGHEST_SUM}": sums.max() < nodes.HIGHEST_SUM,
        f"requantised sums below {nodes.HIGHEST_VALUE}":
            node.logits or (products >> nodes.SHIFT).max() < nodes.HIGHEST_VALUE,
        f"logits below {nodes.HIGHEST_LOGIT}": not node.logits or products.max() < nodes.HIGHEST_LOGIT,
        "a positive, finite scale": _positive(node.scale),
    }  # fmt: skip
    broken = [bound for bound, holds in bounds.items() if not holds]
    if broken:
        yield f"must have {', '.join(broken)}: quantise its module by approx_env.int8.quantize"


def _output(node: Node, inputs: list[Tensor]) -> Tensor:
    first = inputs[0]
    if isinstance(node, Weighted):
        scale = float(node.scale)
        return Tensor(_shape(node, first.shape), *((None, 0, scale) if node.logits else (scale, 0)))
    if isinstance(node, ScaledAddition):
        return Tensor(first.shape, float(node.scale), 0)
    shape = first.shape
    match node:
        case MaxPool() | AveragePool():
            shape = (shape[0], *(_pooled(side, node) for side in shape[1:]))
        case GlobalAveragePool():
            shape = shape[:1]
        case Concatenation():
            shape = (sum(tensor.shape[0] for tensor in inputs), *shape[1:])
        case Flatten():
            shape = (int(np.prod(shape)),)
    return Tensor(shape, first.scale, first.zero_point)


def _shape(node: Convolution | Linear, shape: Shape) -> Shape:
    if isinstance(node, Linear):
        return (len(node.weight),)
    sides = (
        (side + 2 * node.padding - taps) // node.stride + 1
        for side, taps in zip(shape[1:], node.weight.shape[2:], strict=True)
    )
    return (len(node.weight), *sides)


def _pooled(side: int, node: MaxPool | AveragePool) -> int:
    """Length of a pooled side; with ceil, a window must begin inside the input (as torch has it)."""
    whole, rest = divmod(side - node.kernel, node.stride)
    count = whole + 1 + (1 if isinstance(node, MaxPool) and node.ceil and rest > 0 else 0)
    return count - 1 if (count - 1) * node.stride >= side else count
