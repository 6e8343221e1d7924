"""Puts new numbers into weighted nodes: multipliers and biases rounded, within what engines rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from approx_env.int8 import nodes
from approx_env.int8.network import Network
from approx_env.int8.nodes import SHIFT, Weighted


def with_numbers(network: Network, found: Mapping[str, Weighted]) -> Network:
    """The network with the numbers of `found`, by name; what its nodes read stays, which `pool_first` may change."""

    def put(node):
        if node.name not in found:
            return node
        own = found[node.name]
        return replace(node, weight=own.weight, bias=own.bias, multiplier=own.multiplier)

    return replace(network, nodes=tuple(map(put, network.nodes)))


def with_multiplier(node: Weighted, multiplier: np.ndarray) -> Weighted:
    """The node with `multiplier (out,) float`, rounded and cut so that a bias of 0 is within bounds."""
    highest = np.minimum(nodes.HIGHEST_MULTIPLIER, _highest_product(node) // np.maximum(1, _products(node)))
    return replace(node, multiplier=np.clip(np.rint(multiplier), 1, highest).astype(np.int32))


def with_bias(node: Weighted, bias: np.ndarray) -> Weighted:
    """The node with `bias (out,) float`, rounded and cut to what its weights and multiplier leave room for."""
    highest_sum = np.minimum(nodes.HIGHEST_SUM - 1, _highest_product(node) // node.multiplier.astype(np.int64))
    highest = highest_sum - _products(node)
    return replace(node, bias=np.clip(np.rint(bias), -highest, highest).astype(np.int32))


def _products(node: Weighted) -> np.ndarray:
    """The largest magnitude that products add up to, per output channel: `(out,) int64`."""
    return nodes.highest_sums(replace(node, bias=np.zeros_like(node.bias)))


def _highest_product(node: Weighted) -> int:
    """The largest magnitude of a sum times its multiplier."""
    return (nodes.HIGHEST_LOGIT if node.logits else nodes.HIGHEST_VALUE << SHIFT) - 1
