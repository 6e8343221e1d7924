"""Slow, plain twins in exact integer arithmetic of what engines do fast.

Only tests, a doubting reader, and the portable engine when it proves its sums, run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from approx_env import data, tap
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    HALF,
    INPUT,
    SHIFT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    ScaledAddition,
    Site,
    Weighted,
)
from approx_env.lookup import Lookup


def forward(
    network: Network,
    images: np.ndarray,
    configuration: Mapping[str, tuple[Sequence[int], int] | tuple[Lookup]] | None = None,
) -> dict[str, np.ndarray]:
    """Runs `network` on `images (n, c, h, w) uint8` and returns every node's output by name.

    Codes are uint8, logits int64. Sums of products are taken in float64, which is exact below 2**53; all else is in
    integers.

    Args:
        configuration: for each approximated layer its `(codes, tmax)` or `(table,)`; one that is missing stays exact.
    """
    outputs: dict[str, np.ndarray] = {INPUT: data.standardise(images).numpy() if network.standardised else images}
    for node in network.nodes:
        inputs = [outputs[name] for name in node.inputs]
        match node:
            case Weighted():
                outputs[node.name] = weighted(network, node, inputs[0])
            case MaxPool():
                outputs[node.name] = max_pool(inputs[0], node.kernel, node.stride, network.shapes[node.name][1:])
            case AveragePool():
                outputs[node.name] = average_pool(inputs[0], node.kernel, node.stride, network.shapes[node.name][1:])
            case GlobalAveragePool():
                outputs[node.name] = average(inputs[0])
            case Concatenation():
                outputs[node.name] = np.concatenate(inputs, 1)
            case Addition():
                outputs[node.name] = np.minimum(inputs[0].astype(int) + inputs[1], tap.HIGHEST_CODE).astype(np.uint8)
            case ScaledAddition():
                total = sum(x.astype(np.int64) * m for x, m in zip(inputs, node.multiplier.tolist(), strict=True))
                outputs[node.name] = requantised(total)
            case Flatten():
                outputs[node.name] = inputs[0].reshape(len(inputs[0]), -1)
            case Site():
                outputs[node.name] = approximate(inputs[0], *(configuration or {}).get(node.name, ()))
    return outputs


def approximate(codes: np.ndarray, how: Sequence[int] | Lookup | None = None, *tmax: int) -> np.ndarray:
    """Codes of a layer by its four codes and tmax, or by its table, or as they are."""
    if isinstance(how, Lookup):
        return how.values[codes]
    return codes if how is None else tap.tap(codes, how, *tmax)


def weighted(network: Network, node: Weighted, codes: np.ndarray) -> np.ndarray:
    """What a weighted node makes of codes: its definition in `int8.nodes`, word for word."""
    x = torch.from_numpy(codes.astype(np.float64) - network.zero_point(node.inputs[0]))
    sums = products(node, x, torch.from_numpy(node.weight.astype(np.float64))).numpy().astype(np.int64)
    axes = (-1, *[1] * (sums.ndim - 2))
    value = (sums + node.bias.reshape(axes)) * node.multiplier.astype(np.int64).reshape(axes)
    if node.logits:
        return np.maximum(value, 0) if node.relu else value
    return requantised(value)


def requantised(value: np.ndarray) -> np.ndarray:
    """Codes of integers in units of 1 / 2**16."""
    return np.clip((value + HALF) >> SHIFT, 0, tap.HIGHEST_CODE).astype(np.uint8)


def average(x: np.ndarray) -> np.ndarray:
    """A global average pool of `x (n, c, h, w)`: the mean of codes, halves rounded up; the sum of logits."""
    total, places = x.sum((2, 3), dtype=np.int64), x.shape[2] * x.shape[3]
    return ((total + places // 2) // places).astype(np.uint8) if x.dtype == np.uint8 else total


def products(node: Weighted, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sums of products of a node, in the number type of `x` and `weight`."""
    if isinstance(node, Convolution):
        return F.conv2d(x, weight, stride=node.stride, padding=node.padding, groups=node.groups)
    return F.linear(x, weight)


def max_pool(codes: np.ndarray, kernel: int, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """Maximum of each window of `codes (n, c, h, w)`; `shape` is the output's `(i, j)`."""
    pooled = np.empty((*codes.shape[:2], *shape), codes.dtype)
    for i in range(shape[0]):
        for j in range(shape[1]):
            window = codes[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            pooled[:, :, i, j] = window.max((2, 3))
    return pooled


def average_pool(codes: np.ndarray, kernel: int, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """Mean of each window of `codes (n, c, h, w)`, halves rounded up; `shape` is the output's `(i, j)`."""
    pooled = np.empty((*codes.shape[:2], *shape), codes.dtype)
    for i in range(shape[0]):
        for j in range(shape[1]):
            rows, columns = (slice(k * stride, k * stride + kernel) for k in (i, j))
            pooled[:, :, i, j] = average(codes[:, :, rows, columns])
    return pooled


def energy(codes: np.ndarray) -> np.ndarray:
    """Sum over channels of squared codes: `(n, c, h, w)` -> `(n, h, w) int64`."""
    return (codes.astype(np.int64) ** 2).sum(1)


def tally(codes: np.ndarray, limits: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Weighted counts of codes up to each of three `limits`, and above: `(n, c, h, w)`, `(h, w)` -> `(4,) int64`."""
    kind = np.searchsorted(np.asarray(limits), codes, side="left")
    return np.array([((kind == k).sum((0, 1)) * weights).sum() for k in range(4)])
