"""Which multiplications TAP saves: multiply-accumulates by the kind of activation that they read.

Each multiply-accumulate counts at the layer that consumes the activation, once for every output that reads it, so
an activation at a border, which fewer windows meet, counts less. Products with padding belong to no activation and
are left out of the shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approx_env.int8.network import Network
from approx_env.int8.nodes import Convolution, Flatten, Linear, MaxPool, Weighted

KINDS = ("zero", "v1", "v2", "exact")


@dataclass(frozen=True)
class Reader:
    """A tensor of approximated codes that weighted nodes multiply."""

    layer: str  # whose codes they are
    tensor: str  # name of the tensor that is read: the layer's site, or a pool behind it
    weights: np.ndarray  # (h * w,) int64: multiply-accumulates that read one code at each position


def readers(network: Network) -> list[Reader]:
    """Finds where each approximated layer's codes are multiplied.

    Codes that are added to others, or concatenated with others, before they are multiplied are no longer one layer's
    and have no reader.
    """
    found = []
    for layer in network.layers:
        tensors = [layer]
        for tensor in tensors:  # grows while it is walked
            weights = 0
            for node in network.consumers(tensor):
                if isinstance(node, MaxPool | Flatten):
                    tensors.append(node.name)
                elif isinstance(node, Weighted):
                    weights = weights + _uses(network, node)
            if not np.isscalar(weights):
                found.append(Reader(layer, tensor, weights))
    return found


def fed(network: Network, reader_list: list[Reader]) -> dict[str, int]:
    """How many multiply-accumulates an image read each approximated layer's codes; padding left out."""
    reads = dict.fromkeys(network.layers, 0)
    for reader in reader_list:
        reads[reader.layer] += int(reader.weights.sum()) * network.shapes[reader.tensor][0]
    return reads


def total(network: Network) -> int:
    """All multiply-accumulates an image; padding left out."""
    weighted = [node for node in network.nodes if isinstance(node, Weighted)]
    return sum(int(_uses(network, node).sum()) * network.shapes[node.inputs[0]][0] for node in weighted)


def covered(network: Network, reader_list: list[Reader]) -> float:
    """Share of the network's multiply-accumulates, in [0, 1], that read approximated activations; padding left out."""
    return sum(fed(network, reader_list).values()) / total(network)


def _uses(network: Network, node: Convolution | Linear) -> np.ndarray:
    """How many products of `node` read one input code at each position `(h * w,)`."""
    shape = network.shapes[node.inputs[0]]
    if isinstance(node, Linear):
        return np.array([len(node.weight)], np.int64)
    counts = []
    for side, kernel, outputs in zip(shape[1:], node.weight.shape[2:], network.shapes[node.name][1:], strict=True):
        count = np.zeros(side, np.int64)
        for start in np.arange(outputs) * node.stride - node.padding:
            count[max(0, start) : max(0, start + kernel)] += 1
        counts.append(count)
    return np.outer(*counts).reshape(-1) * (len(node.weight) // node.groups)


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts `(..., 4)` of zero, v1, v2, exact -> shares that add up to 1 (0 where nothing was counted)."""
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


def of_all(shares: np.ndarray, covered: float) -> np.ndarray:
    """Shares `(4,)` of the multiplications that the layers feed -> of all of them, the others being exact.

    Args:
        covered: share of all that the layers feed, in [0, 1].

    >>> of_all(np.array([0.5, 0.25, 0.25, 0.0]), 0.5).tolist()
    [0.25, 0.125, 0.125, 0.5]
    """
    return shares * covered + np.array([0.0, 0.0, 0.0, 1.0]) * (1 - covered)
