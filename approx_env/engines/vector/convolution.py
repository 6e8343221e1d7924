"""Integer convolutions for x86 CPUs, with AVX2 or with the dot products of VNNI.

Two kinds, each bit for bit what the network's definition gives:

- `Winograd`, 3 x 3 with stride 1: F(4 x 4, 3 x 3) in integers. A tile of 6 x 6 codes becomes 36 int16, at most 17,340
  in magnitude; 3 x 3 weights become 36 int16, at most 6,223. 36 products a channel then stand for 144. The transforms'
  fractions are taken out: the result is 576 = 64 * 9 times the convolution, known modulo 2**32; 9 has an inverse
  there, and 64 times a sum that stays below 2**25 has no remainder. `kind_of` checks that bound.
- `Direct`, all others, linear layers too: rows of four uint8 by four int8. Without VNNI two products are added in 16
  bits, which pair-safe weights never leave.

All write into a slice of a wider buffer, so that a concatenation costs nothing. Source of the transforms: Lavin &
Gray, arXiv:1509.09308, section 4.2.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from approx_env.engines.vector import simd
from approx_env.engines.vector.simd import OUTPUT_TILE, SETS, TILE, TRANSFORMED
from approx_env.int8 import nodes
from approx_env.int8.nodes import Convolution, Weighted

G = np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 1]])  # rows times 4, 6, 6, 24, 24, 1
SIGNS = np.array([1, -1, -1, 1, 1, 1])  # of the second and third row: the output transform has their signs turned
HIGHEST_WINOGRAD_SUM = 2**25 - 1  # of products: 64 times as much is still an int32
SCRATCH_BYTES = 2**18  # for transformed tiles: half of a small second-level cache
# Weights of more bytes come from beyond that cache each time. Then more tiles share their way, and leave it themselves.
LARGE_WEIGHT_BYTES, LARGE_SCRATCH_BYTES = 2**21, 2**21
HALF_BLOCK = 16  # output channels that leave half a block of 512-bit registers empty: 256 bits are as fast
PANEL = 16  # products of `rows` rows that stay in the first-level cache while the weights pass


def available() -> tuple[str, ...]:
    """Names of the instruction sets that this CPU has, the best first."""
    return tuple(each.name for each in SETS if each.available)


def kind_of(node: Weighted) -> type[Packed]:
    """Which kind of convolution takes a node."""
    if not isinstance(node, Convolution) or node.logits:
        return Direct
    _, channels, *kernel = node.weight.shape
    fits = nodes.highest_sums(node).max() <= HIGHEST_WINOGRAD_SUM and channels % TRANSFORMED == 0
    return Winograd if (*kernel, node.stride, node.padding) == (3, 3, 1, 1) and fits else Direct


class Packed:
    """A node's weights in the order in which they are read.

    Args:
        node: a convolution or a linear layer.
        zero_point: of its input, 0..255.
        instructions: name of an instruction set, one of `available()`.
    """

    def __init__(self, node: Weighted, zero_point: int, instructions: str):
        self._set = next(each for each in SETS if each.name == instructions)
        if self._set.lanes == 16 and len(node.weight) <= HALF_BLOCK:
            self._set = next(each for each in SETS if each.dot and each.lanes == 8)
        weight = node.weight if node.weight.ndim == 4 else node.weight[:, :, None, None]
        self._out, self._zero_point, self._logits = len(weight), zero_point, node.logits
        self._geometry = (node.stride, node.padding) if isinstance(node, Convolution) else (1, 0)
        self._kernel = weight.shape[2:]
        self._order = list(range(self._set.channels)) if node.logits else list(self._set.order)
        total = weight.astype(np.int64).sum((1, 2, 3))
        self._bias = self._blocks(node.bias - zero_point * total).astype(np.int32)
        self._multiplier = self._blocks(node.multiplier / (1 << nodes.SHIFT)).astype(np.float32)  # exact
        self._run = _compiled(SETS.index(self._set))[type(self).__name__]
        self._pack(weight)

    @property
    def width(self) -> int:
        """Output channels, filled up to whole blocks."""
        return self._bias.size

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Values of each output channel `(out, ...)` as `(blocks, channels, ...)`; missing channels are 0."""
        channels = self._set.channels
        short = -len(values) % channels
        whole = np.concatenate([values, np.zeros((short, *values.shape[1:]), values.dtype)])
        return np.ascontiguousarray(whole.reshape(-1, channels, *values.shape[1:])[:, self._order])

    def _pack(self, weight: np.ndarray) -> None:
        raise NotImplementedError

    def __call__(self, x: np.ndarray, y: np.ndarray, offset: int) -> None:
        """Writes the codes of `x (n, h, w, in) uint8` into channels `offset..offset + out` of `y (n, i, j, c)`.

        Of a node that gives logits, `y` is int32 and takes the sums, bias included; c is a multiple of the block.
        """
        raise NotImplementedError


class Winograd(Packed):
    """3 x 3, stride 1, padding 1."""

    def _pack(self, weight):
        g = G * SIGNS[:, None]
        wide = self._blocks(np.einsum("ai,ocij,bj->oabc", g, weight.astype(np.int64), g))
        blocks, channels, _, _, inputs = wide.shape
        pairs = wide.reshape(blocks, channels, TILE * TILE, inputs // 2, 2)
        self._weight = np.ascontiguousarray(pairs.transpose(0, 2, 3, 1, 4), np.int16)
        large = self._weight.nbytes > LARGE_WEIGHT_BYTES
        scratch, most = (LARGE_SCRATCH_BYTES, 16) if large else (SCRATCH_BYTES, 8)
        together = scratch // (2 * TILE * TILE * inputs * self._set.tiles)
        self._tiles = self._set.tiles * int(np.clip(together, 1, most))

    def __call__(self, x, y, offset):
        padding = np.full(x.shape[3], self._zero_point, np.uint8)
        self._run(x, padding, self._weight, self._bias, self._multiplier, y, offset, self._tiles, self._out)


class Direct(Packed):
    """Any kernel, stride and padding; any number of channels."""

    def _pack(self, weight):
        _, channels, height, width = weight.shape
        self._wide = -(-channels // 4) * 4  # channels of a pixel, filled up to fours
        four = np.zeros((self._out, height, width, self._wide), np.int8)
        four[..., :channels] = weight.transpose(0, 2, 3, 1)
        steps = self._blocks(four.reshape(self._out, -1, 4))
        self._weight = np.ascontiguousarray(steps.transpose(0, 2, 1, 3))
        self._offsets: dict[int, np.ndarray] = {}  # by the width of the image that is read

    def __call__(self, x, y, offset):
        (stride, padding), (height, width, channels) = self._geometry, x.shape[1:]
        copied = padding > 0 or channels != self._wide
        sides = (height + 2 * padding, width + 2 * padding) if copied else (0, 0)
        padded = np.full((*sides, self._wide), self._zero_point, np.uint8)
        columns = sides[1] if copied else width
        if columns not in self._offsets:
            places = np.arange(self._kernel[0])[:, None] * columns + np.arange(self._kernel[1])
            fours = places[:, :, None] * self._wide + np.arange(0, self._wide, 4)
            self._offsets[columns] = fours.reshape(-1).astype(np.int32)
        self._run(x, padded, padding, stride, self._offsets[columns], self._weight, self._bias, self._multiplier,
                  y, offset, self._out, self._logits, self._kernel[0] if self._zero_point == 0 else 0)  # fmt: skip


@cache
def _compiled(instructions: int):
    """The loops around the vector code of one instruction set, by kind; numba compiles each at its first call."""
    compiled = simd.compiled
    tile_rows, rows, channels = SETS[instructions].tiles, SETS[instructions].rows, SETS[instructions].channels

    @compiled
    def winograd(x, padding, weight, bias, multiplier, y, offset, tiles, out):
        """Takes `tiles` tiles at a time through input transform, 36 products and output transform."""
        height, width, inputs = x.shape[1:]
        across = (width + OUTPUT_TILE - 1) // OUTPUT_TILE
        each = across * ((height + OUTPUT_TILE - 1) // OUTPUT_TILE)
        places = TILE * TILE
        codes, sums = np.empty((places, tiles, inputs), np.int16), np.empty((places, tile_rows, channels), np.int32)
        sources, targets = np.empty(places, np.int64), np.empty((tiles, OUTPUT_TILE * OUTPUT_TILE), np.int64)
        nowhere = np.empty(y.shape[3], np.uint8)
        row_bytes, block_bytes, sum_bytes = 2 * inputs, weight[0, 0].size * 2, 4 * tile_rows * channels
        for first in range(0, x.shape[0] * each, tiles):
            count = min(tiles, x.shape[0] * each - first)
            for tile in range(count):
                image, place = divmod(first + tile, each)
                top, left = OUTPUT_TILE * (place // across), OUTPUT_TILE * (place % across)
                for i in range(TILE):
                    for j in range(TILE):
                        row, column = top + i - 1, left + j - 1
                        inside = 0 <= row < height and 0 <= column < width
                        here = x.ctypes.data + ((image * height + row) * width + column) * inputs
                        sources[i * TILE + j] = here if inside else padding.ctypes.data
                for channel in range(0, inputs, TRANSFORMED):
                    to = codes.ctypes.data + tile * row_bytes + 2 * channel
                    simd.transform_input(sources.ctypes.data, channel, to, tiles * row_bytes)
                for i in range(OUTPUT_TILE):
                    for j in range(OUTPUT_TILE):
                        row, column = top + i, left + j
                        there = y.ctypes.data + ((image * height + row) * width + column) * y.shape[3] + offset
                        inside = row < height and column < width
                        targets[tile, i * OUTPUT_TILE + j] = there if inside else nowhere.ctypes.data
            for block in range(weight.shape[0]):
                begin = channels * block
                for group in range(0, count, tile_rows):
                    for place in range(places):
                        source = codes.ctypes.data + (place * tiles + group) * row_bytes
                        at = weight.ctypes.data + (block * places + place) * block_bytes
                        to = sums.ctypes.data + place * sum_bytes
                        simd.multiply_shorts(instructions, source, row_bytes, at, inputs // 2, to)
                    for tile in range(group, min(group + tile_rows, count)):
                        simd.transform_output(
                            instructions, sums.ctypes.data + (tile - group) * 4 * channels, sum_bytes,
                            bias.ctypes.data + 4 * begin, multiplier.ctypes.data + 4 * begin,
                            targets.ctypes.data + tile * 8 * OUTPUT_TILE * OUTPUT_TILE, begin, out - begin,
                        )  # fmt: skip

    @compiled
    def direct(x, padded, padding, stride, offsets, weight, bias, multiplier, y, offset, out, logits, skipped):
        """Multiplies the window of every output place; images are copied into `padded (h, w, c)` one by one if any.

        With `skipped`, the number of kernel rows, those that lie in padding of zeros are left out.
        """
        images, height, width, inputs = x.shape
        result_rows, result_columns, wide = y.shape[1:]
        copied = padded.size > 0
        columns, pixel = (padded.shape[1], padded.shape[2]) if copied else (width, inputs)
        image_bytes, row_bytes = height * width * inputs, columns * pixel
        together = 1 if copied else images
        most = PANEL * rows
        sources, targets, tops = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
        kernel_rows = max(1, skipped)
        row_steps = offsets.size // kernel_rows
        target_bytes = wide * y.itemsize
        target = y.ctypes.data + offset
        for first in range(0, images, together):
            if copied:
                for i in range(height):
                    for j in range(width):
                        for c in range(inputs):
                            padded[i + padding, j + padding, c] = x[first, i, j, c]
            source = padded.ctypes.data if copied else x.ctypes.data
            left = together * result_rows * result_columns
            image, i, j = 0, 0, 0
            while left > 0:
                count = min(most, left)
                left -= count
                for k in range(count):
                    sources[k] = source + image * image_bytes + stride * (i * row_bytes + j * pixel)
                    targets[k], tops[k] = target, stride * i - padding
                    target += target_bytes
                    j += 1
                    if j == result_columns:
                        i, j = i + 1, 0
                        if i == result_rows:
                            image, i = image + 1, 0
                for k in range(count, (count + rows - 1) // rows * rows):  # the last one again
                    sources[k], targets[k] = sources[count - 1], targets[count - 1]
                for block in range(weight.shape[0]):
                    begin = channels * block
                    at = weight.ctypes.data + block * weight[0].size
                    for group in range(0, count, rows):
                        here, there = sources.ctypes.data + 8 * group, targets.ctypes.data + 8 * group
                        low, high = 0, kernel_rows
                        if skipped and padding:
                            low = max(0, -tops[min(group + rows, count) - 1])
                            high = min(kernel_rows, height - tops[group])
                        if low >= high:  # padding alone, which is 0
                            low, high = 0, kernel_rows
                        steps, read = (high - low) * row_steps, low * row_steps
                        taps, factors = offsets.ctypes.data + 4 * read, at + 4 * channels * read
                        if logits:
                            simd.add_products(
                                instructions, here, steps, taps, factors,
                                bias.ctypes.data + 4 * begin, there, begin,
                            )  # fmt: skip
                        else:
                            simd.multiply_codes(
                                instructions, here, steps, taps, factors,
                                bias.ctypes.data + 4 * begin, multiplier.ctypes.data + 4 * begin, there, begin,
                                out - begin,
                            )  # fmt: skip

    return {"Winograd": winograd, "Direct": direct}
