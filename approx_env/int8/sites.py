"""Where a network is approximated: at the layers that it was made with, or wherever codes are multiplied."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from approx_env.errors import InputError
from approx_env.int8 import validity
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Addition, Node, ScaledAddition, Site, Weighted

CHOICES = ("standard", "all")
WATCHED = 4  # attention layers of a network that names none, at most
Graph = Mapping[str, tuple[type[Node], tuple[str, ...]]]  # of each node, by name: what it is, and what it reads


def with_sites(network: Network, sites: str) -> Network:
    """The network with its own sites ('standard'), or with more, so that every tensor multiplied has one ('all').

    The new sites follow from the graph: each tensor of codes that a convolution or a linear layer reads gets one, but

    - the input, pools of it, and what is joined with them: they hold pixels;
    - codes that have passed a site already, whatever pools, flattening or concatenation stand between.

    A weighted node reads the new site in place of the tensor. A concatenation or an addition goes on reading the
    exact tensor: its result has a site of its own where it is multiplied. So no code passes a new site and then another
    before a weighted node reads it. Attention layers stay what they are.
    """
    if sites == "standard":
        return network
    nodes: list[Node] = []
    for name, inputs, site in _placed({node.name: (type(node), node.inputs) for node in network.nodes}, network.layers):
        nodes.append(replace(network.by_name[name], inputs=inputs))
        nodes += [Site(site, (name,))] if site else []
    return replace(network, nodes=tuple(nodes))


def with_parts(parts: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The parts of a draft that has no record points, with those sites that `with_sites` calls 'all'.

    Raises:
        InputError: there is no place for one.
    """
    made: dict[str, dict[str, Any]] = {}
    for name, inputs, site in _placed({name: (each["kind"], each["inputs"]) for name, each in parts.items()}, ()):
        made[name] = parts[name] | {"inputs": inputs}
        if site:
            made[site] = {"kind": Site, "inputs": (name,)}
    if len(made) == len(parts):
        raise InputError(
            "the network has nothing to approximate: a convolution or a linear layer must read the output of a ReLU"
        )
    return made


def watched(network: Network) -> tuple[str, ...]:
    """Attention layers of a network that names none: the last layer of each resolution, and of these the last four.

    A layer is left out whose maps are too large to be exact.
    """
    shapes = {name: network.shapes[name] for name in network.layers}
    last = {
        shape[1:]: name
        for name, shape in shapes.items()
        if len(shape) == 1 or math.prod(shape) * shape[0] < validity.HIGHEST_ENERGY
    }
    return tuple(name for name in network.layers if name in last.values())[-WATCHED:]


def _placed(graph: Graph, layers: Collection[str]) -> Iterator[tuple[str, tuple[str, ...], str | None]]:
    """Each node's name, what it reads where all sites are there, and the name of the new site behind it, if any."""
    multiplied = {inputs[0] for kind, inputs in graph.values() if issubclass(kind, Weighted)}
    taken = {INPUT, *graph}
    site_of: dict[str, str] = {}  # by the tensor that it approximates
    for name, (kind, inputs) in graph.items():
        if name in multiplied and _bare(graph, name):
            site_of[name] = _site_name(name, layers, taken)
            taken.add(site_of[name])
        if issubclass(kind, Weighted):
            inputs = tuple(site_of.get(source, source) for source in inputs)
        yield name, inputs, site_of.get(name)


def _bare(graph: Graph, tensor: str) -> bool:
    """Whether a tensor's codes come from weighted nodes or sums and have passed no site since."""
    if tensor not in graph:
        return False
    kind, inputs = graph[tensor]
    if issubclass(kind, Site):
        return False
    if issubclass(kind, Weighted | Addition | ScaledAddition):
        return True
    return all(_bare(graph, source) for source in inputs)


def _site_name(tensor: str, layers: Collection[str], taken: Collection[str]) -> str:
    """A free name that can begin a column's: 'fire2_squeeze' for 'blocks.fire2.squeeze.0', if 'fire2' is a layer."""
    words = [word for word in re.split(r"\W+", tensor) if word and not word.isdigit()]
    first = next((place for place, word in enumerate(words) if word in layers), 0)
    name = "_".join(words[first:]) or "site"
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
