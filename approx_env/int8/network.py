"""The INT8 network as data: a list of nodes (`nodes`) with plain arrays.

`quantize` makes one from a float module, engines run it, `cost` counts it, `teacher` stores it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from approx_env.int8 import validity
from approx_env.int8.nodes import (
    INPUT,
    SHIFT,
    GlobalAveragePool,
    MaxPool,
    Node,
    ScaledAddition,
    Site,
    Weighted,
)


@dataclass(frozen=True, eq=False)
class Network:
    """An INT8 network.

    Raises:
        ValueError: engines could not run it; the text names every fault (see `validity`).
    """

    model: str  # name of the architecture, as on the command line
    classes: tuple[str, ...]  # in the order of the logits
    input_shape: tuple[int, int, int]  # (c, h, w)
    input_scale: float  # of the input pixels
    input_zero_point: int  # 0..255
    nodes: tuple[Node, ...]  # in an order in which they can run; the last gives the logits
    attention: tuple[str, ...]  # layers whose attention maps are compared
    standardised: bool = False  # whether images are brought to one mean and contrast first (`data.standardise`)
    # Shape of each tensor without the batch, by name: `(c, h, w)` or `(features,)`.
    shapes: dict[str, tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self):
        shapes, problems = validity.examine(self)
        if problems:
            raise ValueError("; ".join(problems))
        object.__setattr__(self, "shapes", shapes)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the approximated layers, in forward order."""
        return tuple(node.name for node in self.nodes if isinstance(node, Site))

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def scales(self) -> dict[str, float]:
        """Scale of each tensor of codes; wide integers have none."""
        scales = {INPUT: self.input_scale}
        for node in self.nodes:
            if isinstance(node, ScaledAddition) or (isinstance(node, Weighted) and not node.logits):
                scales[node.name] = node.scale
            elif not isinstance(node, Weighted) and node.inputs[0] in scales:
                scales[node.name] = scales[node.inputs[0]]
        return scales

    @cached_property
    def logit_scale(self) -> float:
        """What an integer logit is multiplied by."""
        node, places = self.nodes[-1], 1
        while not isinstance(node, Weighted):
            if isinstance(node, GlobalAveragePool):
                places *= int(np.prod(self.shapes[node.inputs[0]][1:]))
            node = self.by_name[node.inputs[0]]
        return node.scale / (1 << SHIFT) / places

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
