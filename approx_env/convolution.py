"""Integer convolutions for x86 CPUs with AVX2 but without VNNI, on which oneDNN is not the fastest there is.

Three kinds, each bit for bit what exact integers give (but for rounding ties, in float32 as oneDNN has them):

- 3 x 3, stride 1: Winograd's F(4 x 4, 3 x 3) in integers. A tile of 6 x 6 codes becomes 36 int16, at most 17,340 in
  magnitude; 3 x 3 weights become 36 int16, at most 6,223. 36 products a channel then stand for 144. The transforms'
  fractions are taken out: the result is 576 = 64 * 9 times the convolution, known modulo 2**32; 9 has an inverse
  there, and 64 times a sum that stays below 2**25 has no remainder. `packable` checks that bound.
- 1 x 1, stride 1: rows of four uint8 by four int8, as `quantize.weight_pairs` makes safe.
- Few input channels (the first layer): the same, straight from a padded copy with four channels a pixel.

All write into a slice of a wider buffer, so that a concatenation costs nothing. Source of the transforms: Lavin &
Gray, arXiv:1509.09308, section 4.2.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding
import numba
import numpy as np

from approx_env import simd
from approx_env.simd import CHANNELS, FEW_ROWS, LANES, OUTPUT_TILE, ROWS, TILE

_compiled = numba.njit(nogil=True, cache=True)

G = np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 1]])  # rows times 4, 6, 6, 24, 24, 1
SIGNS = np.array([1, -1, -1, 1, 1, 1])  # of the second and third row, which A^T 24 takes the other way round
HIGHEST_SUM = 2**25 - 1  # of products: 64 times as much is still an int32
HIGHEST_BIAS = 2**30
SCRATCH_BYTES = 2**18  # for transformed tiles: half of a usual second-level cache
PANEL = 16 * ROWS  # rows of a 1 x 1 convolution that stay in the first-level cache while the weights pass


@cache
def available() -> bool:
    """Whether this CPU has the instructions."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx2"))


def packable(weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> type[Packed] | None:
    """Which kind of convolution here takes `weight (out, in, k, k) int8`, if one does."""
    out, channels, kernel, _ = weight.shape
    largest = 255 * np.abs(weight.astype(np.int64)).sum((1, 2, 3)).max() + np.abs(bias.astype(np.int64)).max()
    if out % CHANNELS or largest >= HIGHEST_BIAS:
        return None
    if (kernel, stride, padding) == (3, 1, 1) and channels % CHANNELS == 0 and largest <= HIGHEST_SUM:
        return Winograd
    if (kernel, stride, padding) == (1, 1, 0) and channels % 4 == 0:
        return Pointwise
    return Shallow if channels <= 4 else None


class Packed:
    """A convolution with its weights in the order in which they are read.

    Args:
        weight: `(out, in, k, k) int8`.
        bias: `(out,) int32`, in units of a product.
        multiplier: `(out,)`, what takes a sum to the output's codes.
        zero_point: of the input, 0..255.
    """

    def __init__(self, weight, bias, multiplier, zero_point: int, stride: int, padding: int):
        self.stride, self.padding, self.kernel, self.zero_point = stride, padding, weight.shape[2], zero_point
        total = weight.astype(np.int64).sum((1, 2, 3))
        self.bias = _lanes((bias - zero_point * total).astype(np.int32))
        self.multiplier = _lanes(multiplier.astype(np.float32))
        self.weight = self.pack(weight)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The weights in the order in which they are read."""
        raise NotImplementedError

    def __call__(self, x: np.ndarray, y: np.ndarray, offset: int) -> None:
        """Writes the codes of `x (n, h, w, in) uint8` into channels `offset..offset + out` of `y (n, i, j, c)`."""
        raise NotImplementedError


class Winograd(Packed):
    """3 x 3, stride 1, padding 1."""

    def pack(self, weight):
        g = G * SIGNS[:, None]
        wide = np.einsum("ai,ocij,bj->oabc", g, weight.astype(np.int64), g)
        out, _, _, channels = wide.shape
        pairs = wide.reshape(out // CHANNELS, CHANNELS, TILE * TILE, channels // 2, 2)[:, LANES]
        self._tiles = ROWS * int(np.clip(SCRATCH_BYTES // (2 * TILE * TILE * channels * ROWS), 1, 8))
        return np.ascontiguousarray(pairs.transpose(0, 2, 3, 1, 4), np.int16)

    def __call__(self, x, y, offset):
        padding = np.full(x.shape[3], self.zero_point, np.uint8)
        _winograd(x, padding, self.weight, self.bias, self.multiplier, y, offset, self._tiles)


class Pointwise(Packed):
    """1 x 1, stride 1, no padding, input channels in fours."""

    def pack(self, weight):
        channels = weight.shape[1]
        self._offsets = np.arange(0, channels, 4, dtype=np.int32)
        fours = weight.reshape(-1, CHANNELS, channels // 4, 4)[:, LANES]
        return np.ascontiguousarray(fours.transpose(0, 2, 1, 3))

    def __call__(self, x, y, offset):
        rows, wide = x.reshape(-1, x.shape[3]), y.reshape(-1, y.shape[3])
        if len(rows) >= ROWS:
            _pointwise(rows, self._offsets, self.weight, self.bias, self.multiplier, wide, offset)
            return
        enough = np.zeros((ROWS, rows.shape[1]), np.uint8)
        enough[: len(rows)] = rows
        result = np.empty((ROWS, wide.shape[1]), np.uint8)
        _pointwise(enough, self._offsets, self.weight, self.bias, self.multiplier, result, offset)
        part = slice(offset, offset + self.bias.size)
        wide[:, part] = result[: len(rows), part]


class Shallow(Packed):
    """At most four input channels, and any kernel, stride and padding."""

    def pack(self, weight):
        out, channels, kernel, _ = weight.shape
        four = np.zeros((out, kernel * kernel, 4), np.int8)
        four[:, :, :channels] = weight.transpose(0, 2, 3, 1).reshape(out, -1, channels)
        blocks = four.reshape(-1, CHANNELS, kernel * kernel, 4)[:, LANES]
        return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3))

    def __call__(self, x, y, offset):
        height, width = x.shape[1:3]
        wide = max(y.shape[2], FEW_ROWS)  # a row that is too short is computed a little further
        columns = max(width + 2 * self.padding, (wide - 1) * self.stride + self.kernel)
        padded = np.full((height + 2 * self.padding, columns, 4), self.zero_point, np.uint8)
        taps = np.arange(self.kernel)
        offsets = (4 * (taps[:, None] * columns + taps)).astype(np.int32).reshape(-1)
        target = y if wide == y.shape[2] else np.empty((len(y), y.shape[1], wide, y.shape[3]), np.uint8)
        _shallow(x, padded, self.padding, self.stride, offsets, self.weight, self.bias, self.multiplier, target, offset)
        if target is not y:
            part = slice(offset, offset + self.bias.size)
            y[..., part] = target[:, :, : y.shape[2], part]


def _lanes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.reshape(-1, CHANNELS)[:, LANES])


@_compiled
def _winograd(x, padding, weight, bias, multiplier, y, offset, tiles):
    """Takes `tiles` tiles at a time through input transform, 36 products and output transform."""
    height, width, channels = x.shape[1:]
    across = (width + OUTPUT_TILE - 1) // OUTPUT_TILE
    each = across * ((height + OUTPUT_TILE - 1) // OUTPUT_TILE)
    places = TILE * TILE
    codes, sums = np.empty((places, tiles, channels), np.int16), np.empty((places, ROWS, CHANNELS), np.int32)
    sources, targets = np.empty(places, np.int64), np.empty((tiles, OUTPUT_TILE * OUTPUT_TILE), np.int64)
    nowhere = np.empty(y.shape[3], np.uint8)
    row_bytes, block_bytes, sum_bytes = 2 * channels, weight[0, 0].size * 2, 4 * ROWS * CHANNELS
    for first in range(0, x.shape[0] * each, tiles):
        count = min(tiles, x.shape[0] * each - first)
        for tile in range(count):
            image, place = divmod(first + tile, each)
            top, left = OUTPUT_TILE * (place // across), OUTPUT_TILE * (place % across)
            for i in range(TILE):
                for j in range(TILE):
                    row, column = top + i - 1, left + j - 1
                    inside = 0 <= row < height and 0 <= column < width
                    here = x.ctypes.data + ((image * height + row) * width + column) * channels
                    sources[i * TILE + j] = here if inside else padding.ctypes.data
            for channel in range(0, channels, CHANNELS):
                out = codes.ctypes.data + tile * row_bytes + 2 * channel
                simd.transform_input(sources.ctypes.data, channel, out, tiles * row_bytes)
            for i in range(OUTPUT_TILE):
                for j in range(OUTPUT_TILE):
                    row, column = top + i, left + j
                    there = y.ctypes.data + ((image * height + row) * width + column) * y.shape[3] + offset
                    inside = row < height and column < width
                    targets[tile, i * OUTPUT_TILE + j] = there if inside else nowhere.ctypes.data
        for block in range(weight.shape[0]):
            for group in range(0, count, ROWS):
                for place in range(places):
                    rows = codes.ctypes.data + (place * tiles + group) * row_bytes
                    at = weight.ctypes.data + (block * places + place) * block_bytes
                    simd.multiply_shorts(rows, row_bytes, at, channels // 2, sums.ctypes.data + place * sum_bytes)
                for tile in range(group, min(group + ROWS, count)):
                    simd.transform_output(
                        sums.ctypes.data + (tile - group) * 4 * CHANNELS, sum_bytes,
                        bias.ctypes.data + 4 * CHANNELS * block, multiplier.ctypes.data + 4 * CHANNELS * block,
                        targets.ctypes.data + tile * 8 * OUTPUT_TILE * OUTPUT_TILE, CHANNELS * block,
                    )  # fmt: skip


@_compiled
def _pointwise(x, offsets, weight, bias, multiplier, y, offset):
    """Multiplies the rows of `x (n, in)`, at least `ROWS`; the last rows are taken together with some before them."""
    count, channels = x.shape
    for first in range(0, count, PANEL):
        last = min(first + PANEL, count)
        for block in range(weight.shape[0]):
            for begin in range(first, last, ROWS):
                row = min(begin, count - ROWS)
                simd.multiply_codes(
                    x.ctypes.data + row * channels, channels, offsets.size, offsets.ctypes.data,
                    weight.ctypes.data + block * weight[0].size,
                    bias.ctypes.data + 4 * CHANNELS * block, multiplier.ctypes.data + 4 * CHANNELS * block,
                    y.ctypes.data + row * y.shape[1] + offset + CHANNELS * block, y.shape[1],
                )  # fmt: skip


@_compiled
def _shallow(x, padded, padding, stride, offsets, weight, bias, multiplier, y, offset):
    """Copies each image into `padded (h, w, 4)`, and multiplies the windows of four neighbours at a time."""
    height, width, channels = x.shape[1:]
    rows, columns, wide = y.shape[1:]
    for image in range(x.shape[0]):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    padded[i + padding, j + padding, c] = x[image, i, j, c]
        for i in range(rows):
            for begin in range(0, columns, FEW_ROWS):
                j = min(begin, columns - FEW_ROWS)
                for block in range(weight.shape[0]):
                    simd.multiply_few_codes(
                        padded.ctypes.data + 4 * stride * (i * padded.shape[1] + j), 4 * stride,
                        offsets.size, offsets.ctypes.data, weight.ctypes.data + block * weight[0].size,
                        bias.ctypes.data + 4 * CHANNELS * block, multiplier.ctypes.data + 4 * CHANNELS * block,
                        y.ctypes.data + ((image * rows + i) * columns + j) * wide + offset + CHANNELS * block, wide,
                    )  # fmt: skip
