"""Where a network is approximated: at the layers that it was made with, or wherever codes are multiplied."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from itertools import count

from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Addition, Node, ScaledAddition, Site, Weighted

CHOICES = ("standard", "all")


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
    multiplied = {node.inputs[0] for node in network.nodes if isinstance(node, Weighted)}
    taken = {INPUT, *(node.name for node in network.nodes)}
    site_of: dict[str, str] = {}  # by the tensor that it approximates
    nodes: list[Node] = []
    for node in network.nodes:
        if isinstance(node, Weighted):
            node = replace(node, inputs=tuple(site_of.get(name, name) for name in node.inputs))
        nodes.append(node)
        if node.name in multiplied and _bare(network, node.name):
            site_of[node.name] = _site_name(node.name, network.layers, taken)
            taken.add(site_of[node.name])
            nodes.append(Site(site_of[node.name], (node.name,)))
    return replace(network, nodes=tuple(nodes))


def _bare(network: Network, tensor: str) -> bool:
    """Whether a tensor's codes come from weighted nodes or sums and have passed no site since."""
    node = network.by_name.get(tensor)
    if node is None or isinstance(node, Site):
        return False
    if isinstance(node, Weighted | Addition | ScaledAddition):
        return True
    return all(_bare(network, source) for source in node.inputs)


def _site_name(tensor: str, layers: Collection[str], taken: Collection[str]) -> str:
    """A free name that can begin a column's: 'fire2_squeeze' for 'blocks.fire2.squeeze.0', if 'fire2' is a layer."""
    words = [word for word in re.split(r"\W+", tensor) if word and not word.isdigit()]
    first = next((place for place, word in enumerate(words) if word in layers), 0)
    name = "_".join(words[first:]) or "site"
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
