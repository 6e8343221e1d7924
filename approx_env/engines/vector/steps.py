"""The steps of a plan: compiled code for one node, and what it must know besides the addresses of its tensors.

All code here takes and gives tensors `(n, h, w, c)`, uint8 codes or int64 wide integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from approx_env.engines.vector import kernels, simd
from approx_env.int8.nodes import (
    Addition,
    AveragePool,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Node,
    ScaledAddition,
)

TABLE = 4  # int64 an image: addresses of its five codes (uint8), its four counts, its exact codes and its energies


@dataclass(frozen=True)
class Step:
    """Code made by `simd.step`, and its arguments; of arrays it gets the addresses."""

    code: CFunc
    arguments: Sequence[int | np.ndarray]

    def numbers(self) -> list[int]:
        """The arguments as the code reads them."""
        return [one.ctypes.data if isinstance(one, np.ndarray) else int(one) for one in self.arguments]


class Packed(Protocol):
    """A node with weights, made ready to run."""

    def step(self, shape: tuple[int, ...], into: tuple[int, ...], offset: int) -> Step:
        """Reads a tensor of `shape`, and writes at channel `offset` of one of the shape `into`, as `Network.shapes`."""


def sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of `(c, h, w)`; features are channels of one place."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else (1, 1, shape[0])


def copy(shape: tuple[int, ...], width: int, offset: int) -> Step:
    """Writes codes of `shape` into channels `offset..` of a tensor with `width` of them."""
    height, across, channels = sides(shape)
    return Step(_code("copy"), (height * across, channels, width, offset))


def tap(shape: tuple[int, ...], weights: np.ndarray, attention: bool) -> Step:
    """Approximates codes of `shape`, and takes counts and energies meanwhile; reads a table, see `TABLE`.

    Args:
        weights: `(p,) int64`, products that read a code of the result at each position; empty for none.
    """
    height, width, channels = sides(shape)
    places = height * width
    vectors = channels % simd.POOLED == 0 and channels <= simd.LONGEST
    energies = (channels if len(shape) == 1 else places) if attention else 0
    return Step(_code("tap"), (places, channels, vectors, len(weights), weights, energies, len(shape) == 1))


def tally(shape: tuple[int, ...], weights: np.ndarray) -> Step:
    """Counts codes of `shape` by kind; reads a table as well."""
    height, width, channels = sides(shape)
    return Step(_code("tally"), (height * width, channels, weights))


def of(node: Node, shapes: Sequence[tuple[int, ...]], types: Sequence[type], result: tuple[int, ...]) -> Step:
    """The step of a node without weights, from what it reads, and the shape that it gives."""
    height, width, channels = sides(shapes[0])
    match node:
        case MaxPool() | AveragePool():
            kind = "max_pool" if isinstance(node, MaxPool) else "average_pool"
            return Step(_code(kind), (height, width, *sides(result), node.kernel, node.stride))
        case GlobalAveragePool():
            return Step(_code("average", types[0]), (height * width, channels))
        case Flatten():
            return Step(_code("flatten", types[0]), (height * width, channels))
        case Addition():
            return Step(_code("add"), (height * width * channels,))
        case ScaledAddition():
            return Step(_code("add_scaled", *types), (height * width * channels, *node.multiplier))
    raise NotImplementedError(type(node).__name__)


@cache
def _code(name: str, *types: type) -> CFunc:
    return simd.step(_functions(*(types or (np.uint8,)))[name])


def _functions(kind: type, other: type = np.uint8) -> dict[str, object]:
    """The code by name, for inputs of these types."""
    codes, rounded = np.uint8, kind is np.uint8

    def tap(arguments, images, table, unused, y):
        places, channels, vectors, counted, weights, energies, of_features = simd.arguments(arguments, 7)
        uses = carray(simd.pointer(weights), (counted,), np.int64)
        size = places * channels
        for image in range(images):
            five, counts, exact, energy = simd.arguments(table + 8 * TABLE * image, TABLE)
            source = carray(simd.pointer(exact), (1, places, channels), codes)
            target = carray(simd.pointer(y + image * size), (1, places, channels), codes)
            limits, four = carray(simd.pointer(five), (5,), codes), carray(simd.pointer(counts), (4,), np.int64)
            of_places = 1 if energies and not of_features else 0
            squares = carray(simd.pointer(energy), (of_places, energies), np.int64)
            if vectors:
                kernels.approximate_avx2(source, target, limits, uses, four, squares)
            else:
                kernels.approximate(source, target, limits, uses, four, squares)
            if energies and of_features:
                own = carray(simd.pointer(energy), (energies,), np.int64)
                for c in range(channels):
                    own[c] = np.int64(target[0, 0, c]) * np.int64(target[0, 0, c])
        return 1

    def tally(arguments, images, x, table, y):
        places, channels, weights = simd.arguments(arguments, 3)
        uses = carray(simd.pointer(weights), (places,), np.int64)
        for image in range(images):
            five, counts, _, _ = simd.arguments(table + 8 * TABLE * image, TABLE)
            source = carray(simd.pointer(x + image * places * channels), (1, places, channels), codes)
            limits, four = carray(simd.pointer(five), (5,), codes), carray(simd.pointer(counts), (4,), np.int64)
            kernels.tally(source, codes(0), limits[1], limits[4], uses, four)
        return 1

    def copy(arguments, images, x, unused, y):
        places, channels, width, offset = simd.arguments(arguments, 4)
        source = carray(simd.pointer(x), (images * places, channels), codes)
        carray(simd.pointer(y), (images * places, width), codes)[:, offset : offset + channels] = source
        return 1

    def max_pool(arguments, images, x, unused, y):
        height, width, rows, columns, channels, kernel, stride = simd.arguments(arguments, 7)
        source = carray(simd.pointer(x), (images, height, width, channels), codes)
        kernels.max_pool(source, carray(simd.pointer(y), (images, rows, columns, channels), codes), kernel, stride)
        return 1

    def average_pool(arguments, images, x, unused, y):
        height, width, rows, columns, channels, kernel, stride = simd.arguments(arguments, 7)
        source = carray(simd.pointer(x), (images, height, width, channels), codes)
        kernels.average_pool(source, carray(simd.pointer(y), (images, rows, columns, channels), codes), kernel, stride)
        return 1

    def average(arguments, images, x, unused, y):
        places, channels = simd.arguments(arguments, 2)
        source = carray(simd.pointer(x), (images, places, channels), kind)
        kernels.average(source, carray(simd.pointer(y), (images, channels), kind), rounded)
        return 1

    def flatten(arguments, images, x, unused, y):
        places, channels = simd.arguments(arguments, 2)
        source = carray(simd.pointer(x), (images, places, channels), kind)
        target = carray(simd.pointer(y), (images, channels, places), kind)
        for image in range(images):
            for channel in range(channels):
                for place in range(places):
                    target[image, channel, place] = source[image, place, channel]
        return 1

    def add(arguments, images, a, b, y):
        count = images * simd.arguments(arguments, 1)[0]
        first, second = carray(simd.pointer(a), (count,), codes), carray(simd.pointer(b), (count,), codes)
        kernels.add(first, second, carray(simd.pointer(y), (count,), codes))
        return 1

    def add_scaled(arguments, images, a, b, y):
        size, by, other_by = simd.arguments(arguments, 3)
        count = images * size
        first, second = carray(simd.pointer(a), (count,), kind), carray(simd.pointer(b), (count,), other)
        kernels.add_scaled(first, second, carray(simd.pointer(y), (count,), codes), by, other_by)
        return 1

    return {
        made.__name__: made for made in (tap, tally, copy, max_pool, average_pool, average, flatten, add, add_scaled)
    }
