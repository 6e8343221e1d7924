"""The INT8 network as data: a list of nodes with plain arrays, and what they compute, in integers alone.

`quantize` makes one from a float module, engines run it, `cost` counts it, `teacher` stores it. Weights are int8,
symmetric, per output channel; activations uint8, per tensor, `x = scale * (code - zero_point)`, with zero point 0
behind a ReLU. Every number that an engine computes is an integer, defined here. So all engines, all CPUs and all
hardware give the same codes.

A weighted node adds up products, adds its bias, and requantises with one integer multiplier for each output channel
and one shift for all. It rounds halves up, as hardware does that adds half a step before it shifts:

    a = sum (c - z) w + bias
    code = clamp((a * multiplier + 2**15) >> 16, 0, 255)                     1 <= multiplier < 2**24

Source: Jacob et al., CVPR 2018, section 2.2, eq. 4 to 6, with a fixed shift. The real weight scale of a channel is
`multiplier * scale / (2**16 * input scale)`: the quantiser fits it to the multiplier, not the other way round.

Why 16: float32 then computes the same code, and needs one multiplication. A code below 256 has 8 bits before the point
and 16 behind it, which are the 24 of a float32, so that the product is exact. A larger product may be rounded, but
rounding keeps order: it stays at 256 or above, and is cut to 255.

The last weighted node gives logits, which are not cut: `a * multiplier`, int64. A global average pool gives
`(sum + n // 2) // n` of n codes; of logits it gives the sum, and their scale is divided by n instead. A logit's value
is `integer * Network.logit_scale`, in float64, where the integer is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

INPUT = "input"
SHIFT = 16  # a multiplier m stands for m / 2**SHIFT
HALF = 1 << (SHIFT - 1)
HIGHEST_MULTIPLIER = 2**24 - 1  # exact in float32
HIGHEST_WEIGHT = 127
HIGHEST_PAIR = 128  # of two neighbouring input channels' weights of one sign: 255 * 128 < 2**15
HIGHEST_SUM = 2**30  # of products and bias, in magnitude
HIGHEST_VALUE = 2**30  # of a sum, requantised and not cut, in magnitude
HIGHEST_LOGIT = 2**40  # in magnitude: a sum over 4,096 places is exact in float64


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; `inputs` are names of earlier nodes, or 'input'."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Weighted(Node):
    """A node with weights."""

    weight: np.ndarray  # (out, in, height, width) or (out, in) int8, in -127..127, pair-safe
    bias: np.ndarray  # (out,) int32, in units of a product
    multiplier: np.ndarray  # (out,) int32, in 1..HIGHEST_MULTIPLIER
    relu: bool  # whether negative logits become 0; codes have no sign anyway
    scale: float  # of the output codes; of logits: of a * multiplier / 2**16
    logits: bool  # whether the output is a * multiplier, int64, instead of codes


@dataclass(frozen=True, eq=False)
class Convolution(Weighted):
    """Two-dimensional convolution, no dilation, one group, the same stride and padding in both directions."""

    stride: int
    padding: int


@dataclass(frozen=True, eq=False)
class Linear(Weighted):
    """Fully connected layer on `(n, in)`."""


@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Maximum over square windows without padding; `ceil` keeps windows that the border cuts."""

    kernel: int
    stride: int
    ceil: bool


@dataclass(frozen=True, eq=False)
class GlobalAveragePool(Node):
    """Mean over space of codes, sum over space of logits; gives `(n, c)`."""


@dataclass(frozen=True, eq=False)
class Concatenation(Node):
    """Concatenation over channels of tensors that share one scale."""


@dataclass(frozen=True, eq=False)
class Addition(Node):
    """Sum of two tensors that share one scale, and whose zero point is 0: min(a + b, 255) in codes."""


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """`(n, c, h, w)` -> `(n, c * h * w)` in that order."""


@dataclass(frozen=True, eq=False)
class Site(Node):
    """A record point: the codes that TAP approximates. Its name is the layer's."""


OPERATIONS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (Convolution, Linear, MaxPool, GlobalAveragePool, Concatenation, Addition, Flatten, Site)
}


@dataclass(frozen=True, eq=False)
class Network:
    """An INT8 network.

    Raises:
        ValueError: a node reads what no earlier node gives, or two nodes share a name.
    """

    model: str  # name of the architecture, as on the command line
    classes: tuple[str, ...]  # in the order of the logits
    input_shape: tuple[int, int, int]  # (c, h, w)
    input_scale: float  # of the input pixels
    input_zero_point: int  # 0..255
    nodes: tuple[Node, ...]  # in an order in which they can run; the last gives the logits
    attention: tuple[str, ...]  # layers whose attention maps are compared
    standardised: bool = False  # whether images are brought to one mean and contrast first (`data.standardise`)

    def __post_init__(self):
        known = {INPUT}
        for node in self.nodes:
            missing = set(node.inputs) - known
            if missing or node.name in known:
                fault = f"reads unknown {sorted(missing)}" if missing else "has a name already taken"
                raise ValueError(f"node '{node.name}' {fault}: nodes must be named once and come after their inputs")
            known.add(node.name)
            _check(node)
        strangers = set(self.attention) - set(self.layers)
        if strangers or not self.layers:
            raise ValueError(f"attention layers must be approximated layers {self.layers}, got {self.attention}")

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the approximated layers, in forward order."""
        return tuple(node.name for node in self.nodes if isinstance(node, Site))

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each node's output without the batch: `(c, h, w)` or `(features,)`."""
        shapes: dict[str, tuple[int, ...]] = {INPUT: self.input_shape}
        for node in self.nodes:
            shapes[node.name] = _output_shape(node, [shapes[name] for name in node.inputs])
        return shapes

    @cached_property
    def scales(self) -> dict[str, float]:
        """Scale of each tensor of codes; logits have none."""
        scales = {INPUT: self.input_scale}
        for node in self.nodes:
            if isinstance(node, Weighted) and not node.logits:
                scales[node.name] = node.scale
            elif not isinstance(node, Weighted) and node.inputs[0] in scales:
                scales[node.name] = scales[node.inputs[0]]
        return scales

    @cached_property
    def logit_scale(self) -> float:
        """What an integer logit is multiplied by."""
        *_, last = (node for node in self.nodes if isinstance(node, Weighted))
        scale = last.scale / (1 << SHIFT)
        for node in self.nodes[self.nodes.index(last) + 1 :]:
            if isinstance(node, GlobalAveragePool):
                scale /= int(np.prod(self.shapes[node.inputs[0]][1:]))
        return scale

    def weight_scale(self, node: Weighted) -> np.ndarray:
        """Scale of the weights of each output channel, `(out,) float64`."""
        return node.multiplier * (node.scale / (1 << SHIFT) / self.scales[node.inputs[0]])

    def zero_point(self, name: str) -> int:
        """The code of 0.0 in the named tensor: the input's until a weighted node, 0 behind it."""
        while name != INPUT:
            node = self.by_name[name]
            if isinstance(node, Weighted):
                return 0
            name = node.inputs[0]
        return self.input_zero_point

    def consumers(self, name: str) -> list[Node]:
        """The nodes that read the named tensor."""
        return [node for node in self.nodes if name in node.inputs]

    @cached_property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates an image of each weighted node, those on padding included."""
        return {
            node.name: int(np.prod(self.shapes[node.name][1:], dtype=np.int64)) * node.weight.size
            for node in self.nodes
            if isinstance(node, Weighted)
        }


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


def highest_sums(node: Weighted) -> np.ndarray:
    """The largest magnitude that products and bias can add up to, per output channel: `(out,) int64`."""
    products = 255 * np.abs(node.weight.astype(np.int64)).reshape(len(node.weight), -1).sum(1)
    return products + np.abs(node.bias.astype(np.int64))


def _check(node: Node) -> None:
    """Raises ValueError where a node breaks a bound that engines rely on."""
    if not isinstance(node, Weighted):
        return
    sums, multiplier = highest_sums(node), node.multiplier.astype(np.int64)
    values = sums * multiplier >> SHIFT
    bounds = {
        f"weights of at least {-HIGHEST_WEIGHT}": node.weight.min() >= -HIGHEST_WEIGHT,
        f"neighbouring weights of one sign that add up to at most {HIGHEST_PAIR}":
            weight_pairs(node.weight).max() <= HIGHEST_PAIR,
        f"multipliers in 1..{HIGHEST_MULTIPLIER}": 1 <= multiplier.min() and multiplier.max() <= HIGHEST_MULTIPLIER,
        f"sums below {HIGHEST_SUM}": sums.max() < HIGHEST_SUM,
        f"requantised sums below {HIGHEST_VALUE}": node.logits or values.max() < HIGHEST_VALUE,
        f"logits below {HIGHEST_LOGIT}": not node.logits or (sums * multiplier).max() < HIGHEST_LOGIT,
        "a positive, finite scale": 0 < node.scale < np.inf,
    }  # fmt: skip
    broken = [bound for bound, holds in bounds.items() if not holds]
    if broken:
        raise ValueError(f"node '{node.name}' must have {', '.join(broken)}: quantise its module by approx_env.quantize")


def pool_first(network: Network) -> Network:
    """Moves each site behind the max pool that alone reads it: the same codes, a quarter of them to approximate.

    TAP is monotone, so it commutes with a maximum, bit for bit. Attention layers stay: their maps need the codes
    before the pool. So does a layer that would change places with another one: layers keep their order.
    """
    place = {node.name: index for index, node in enumerate(network.nodes)}
    pools: dict[str, MaxPool] = {}  # by the site that they change places with
    for node in network.nodes:
        readers = network.consumers(node.name)
        moves = isinstance(node, Site) and node.name not in network.attention and len(readers) == 1
        if moves and isinstance(readers[0], MaxPool):
            between = network.nodes[place[node.name] + 1 : place[readers[0].name]]
            if not any(isinstance(other, Site) for other in between):
                pools[node.name] = readers[0]
    site_of = {pool.name: site for site, pool in pools.items()}
    nodes = []
    for node in network.nodes:
        if node.name in pools:
            nodes.append(replace(pools[node.name], inputs=node.inputs))
        elif node.name in site_of:
            nodes.append(Site(site_of[node.name], (node.name,)))
        else:
            nodes.append(replace(node, inputs=tuple(site_of.get(name, name) for name in node.inputs)))
    return replace(network, nodes=tuple(nodes))


def _output_shape(node: Node, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    shape = inputs[0]
    match node:
        case Convolution():
            kernel = node.weight.shape[2:]
            sides = (
                (side + 2 * node.padding - taps) // node.stride + 1 for side, taps in zip(shape[1:], kernel, strict=True)
            )
            return (len(node.weight), *sides)
        case Linear():
            return (len(node.weight),)
        case MaxPool():
            return (shape[0], *(_pooled(side, node) for side in shape[1:]))
        case GlobalAveragePool():
            return shape[:1]
        case Concatenation():
            return (sum(part[0] for part in inputs), *shape[1:])
        case Flatten():
            return (int(np.prod(shape)),)
        case _:
            return shape


def _pooled(side: int, node: MaxPool) -> int:
    """Length of a pooled side; with ceil, a window must begin inside the input (as torch has it)."""
    whole, rest = divmod(side - node.kernel, node.stride)
    count = whole + 1 + (1 if node.ceil and rest > 0 else 0)
    return count - 1 if (count - 1) * node.stride >= side else count
