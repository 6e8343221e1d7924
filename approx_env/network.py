"""The INT8 network as data: a list of nodes with plain arrays.

`quantize` makes one from a float module, engines run it, `cost` counts it, `teacher` stores it. Weights are int8,
symmetric, per output channel; activations uint8, per tensor, `x = scale * (code - zero_point)`, with zero point 0
behind a ReLU. A weighted node accumulates integers, adds its integer bias, and requantises:

    code = clamp(round((sum (c - z) w + bias) * input_scale * weight_scale / scale), 0, 255)

The last weighted node has no output scale and gives float32; what follows it works on floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

INPUT = "input"


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; `inputs` are names of earlier nodes, or 'input'."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Weighted(Node):
    """A node with weights."""

    weight: np.ndarray  # (out, in, kernel, kernel) or (out, in) int8, in -127..127
    weight_scale: np.ndarray  # (out,) float32, > 0
    bias: np.ndarray  # (out,) int32, in units of input_scale * weight_scale
    relu: bool
    scale: float | None  # of the output codes; None: float32 output


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
    """Mean over space of a float tensor; gives `(n, c)`."""


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
        """Scale of each tensor of codes; a float tensor has none."""
        scales = {INPUT: self.input_scale}
        for node in self.nodes:
            scale = node.scale if isinstance(node, Weighted) else scales.get(node.inputs[0])
            if scale is not None:
                scales[node.name] = scale
        return scales

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


def pool_first(network: Network) -> Network:
    """Moves each site behind the max pool that alone reads it: the same codes, a quarter of them to approximate.

    TAP is monotone, so it commutes with a maximum, bit for bit. Attention layers stay: their maps need the codes
    before the pool.
    """
    pools: dict[str, MaxPool] = {}  # by the site that they change places with
    for node in network.nodes:
        readers = network.consumers(node.name)
        moves = isinstance(node, Site) and node.name not in network.attention and len(readers) == 1
        if moves and isinstance(readers[0], MaxPool):
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
            sides = ((side + 2 * node.padding - node.weight.shape[2]) // node.stride + 1 for side in shape[1:])
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
