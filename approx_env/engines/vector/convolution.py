"""Integer convolutions for x86 CPUs, with AVX2 or with the dot products of VNNI.

Two kinds, each bit for bit what the network's definition gives:

- `Winograd`, 3 x 3 with stride 1: F(4 x 4, 3 x 3) in integers. A tile of 6 x 6 codes becomes 36 int16, at most 17,340
  in magnitude; 3 x 3 weights become 36 int16, at most 6,223. 36 products a channel then stand for 144. The transforms'
  fractions are taken out: the result is 576 = 64 * 9 times the convolution, known modulo 2**32; 9 has an inverse
  there, and 64 times a sum that stays below 2**25 has no remainder. `kind_of` checks that bound.
- `Direct`, all others, linear layers too: rows of four uint8 by four int8. Without VNNI two products are added in 16
  bits, which pair-safe weights never leave.

Dot products of 512 bits take all by `Direct`, which is at the core's peak there. Winograd's weights are eight times as
large; SqueezeNet's 3 x 3 nodes took a quarter to a half more time by it (Xeon with VNNI), those of one AlexNet image
six times as much.

All write into a slice of a wider buffer, so that a concatenation costs nothing. Source of the transforms: Lavin &
Gray, arXiv:1509.09308, section 4.2.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from approx_env.engines.vector import simd
from approx_env.engines.vector.simd import OUTPUT_TILE, SETS, TILE, TRANSFORMED
from approx_env.engines.vector.steps import Step, sides
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


def kind_of(node: Weighted, instructions: str) -> type[PackedConvolution]:
    """Which kind of convolution takes a node; `instructions` is one of `available()`."""
    if not isinstance(node, Convolution) or node.logits or _set_of(node, instructions).lanes == 16:
        return Direct
    _, channels, *kernel = node.weight.shape
    fits = nodes.highest_sums(node).max() <= HIGHEST_WINOGRAD_SUM and channels % TRANSFORMED == 0
    return Winograd if (*kernel, node.stride, node.padding) == (3, 3, 1, 1) and fits else Direct


def _set_of(node: Weighted, instructions: str) -> simd.Instructions:
    """The instruction set for a node: half a block of 512 bits is not worth its empty half."""
    chosen = next(each for each in SETS if each.name == instructions)
    if chosen.lanes == 16 and len(node.weight) <= HALF_BLOCK:
        return next(each for each in SETS if each.dot and each.lanes == 8)
    return chosen


class PackedConvolution:
    """A node's weights in the order in which they are read, and the step that reads them.

    Args:
        node: a convolution or a linear layer.
        zero_point: of its input, 0..255.
        instructions: name of an instruction set, one of `available()`.
    """

    def __init__(self, node: Weighted, zero_point: int, instructions: str):
        self._set = _set_of(node, instructions)
        weight = node.weight if node.weight.ndim == 4 else node.weight[:, :, None, None]
        self._out, self._zero_point, self._logits, self._relu = len(weight), zero_point, node.logits, node.relu
        self._geometry = (node.stride, node.padding) if isinstance(node, Convolution) else (1, 0)
        self._kernel = weight.shape[2:]
        self._order = list(range(self._set.channels)) if node.logits else list(self._set.order)
        total = weight.astype(np.int64).sum((1, 2, 3))
        self._bias = self._blocks(node.bias - zero_point * total).astype(np.int32)
        self._multiplier = self._blocks(node.multiplier / (1 << nodes.SHIFT)).astype(np.float32)  # exact
        self._wide_multiplier = node.multiplier.astype(np.int64)
        self._code = _compiled(type(self).__name__, SETS.index(self._set))
        self._pack(weight)

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Values of each output channel `(out, ...)` as `(blocks, channels, ...)`; missing channels are 0."""
        channels = self._set.channels
        short = -len(values) % channels
        whole = np.concatenate([values, np.zeros((short, *values.shape[1:]), values.dtype)])
        return np.ascontiguousarray(whole.reshape(-1, channels, *values.shape[1:])[:, self._order])

    def _pack(self, weight: np.ndarray) -> None:
        raise NotImplementedError

    def step(self, shape: tuple[int, ...], into: tuple[int, ...], offset: int) -> Step:
        """Writes into channels `offset..offset + out` of a tensor of the shape `into`, from one of `shape`."""
        raise NotImplementedError


class Winograd(PackedConvolution):
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

    def step(self, shape, into, offset):
        return Step(self._code, (*sides(shape), self._zero_point, into[0], offset, self._out, self._tiles,
                                 len(self._weight), self._weight, self._bias, self._multiplier))  # fmt: skip


class Direct(PackedConvolution):
    """Any kernel, stride and padding; any number of channels."""

    def _pack(self, weight):
        _, channels, height, width = weight.shape
        self._wide = -(-channels // 4) * 4  # channels of a pixel, filled up to fours
        four = np.zeros((self._out, height, width, self._wide), np.int8)
        four[..., :channels] = weight.transpose(0, 2, 3, 1)
        fours = self._blocks(four.reshape(self._out, -1, 4))
        self._weight = np.ascontiguousarray(fours.transpose(0, 2, 1, 3))

    def step(self, shape, into, offset):
        stride, padding = self._geometry
        columns = sides(shape)[1] + 2 * padding
        places = np.arange(self._kernel[0])[:, None] * columns + np.arange(self._kernel[1])
        offsets = (places[:, :, None] * self._wide + np.arange(0, self._wide, 4)).reshape(-1).astype(np.int32)
        return Step(
            self._code,
            (*sides(shape), *sides(into), self._wide, stride, padding, self._zero_point, offset, self._out,
             len(self._weight), len(offsets), self._kernel[0] if self._zero_point == 0 else 0, offsets, self._weight,
             self._bias, self._multiplier, self._wide_multiplier, self._logits, self._relu),
        )  # fmt: skip


@cache
def _compiled(kind: str, instructions: int) -> CFunc:
    """The loops around the vector code of one instruction set."""
    tile_rows, rows, channels = SETS[instructions].tiles, SETS[instructions].rows, SETS[instructions].channels

    def winograd(arguments, images, x, unused, y):
        """Takes `tiles` tiles at a time through input transform, 36 products and output transform."""
        (height, width, inputs, zero_point, wide, offset, out, tiles, blocks, weight, bias,
         multiplier) = simd.arguments(arguments, 12)  # fmt: skip
        across = (width + OUTPUT_TILE - 1) // OUTPUT_TILE
        each = across * ((height + OUTPUT_TILE - 1) // OUTPUT_TILE)
        places = TILE * TILE
        codes, sums = np.empty((places, tiles, inputs), np.int16), np.empty((places, tile_rows, channels), np.int32)
        sources, targets = np.empty(places, np.int64), np.empty((tiles, OUTPUT_TILE * OUTPUT_TILE), np.int64)
        nowhere, padding = np.empty(wide, np.uint8), np.full(inputs, zero_point, np.uint8)
        row_bytes, block_bytes, sum_bytes = 2 * inputs, 2 * inputs * channels, 4 * tile_rows * channels
        for first in range(0, images * each, tiles):
            count = min(tiles, images * each - first)
            for tile in range(count):
                image, place = divmod(first + tile, each)
                top, left = OUTPUT_TILE * (place // across), OUTPUT_TILE * (place % across)
                for i in range(TILE):
                    for j in range(TILE):
                        row, column = top + i - 1, left + j - 1
                        inside = 0 <= row < height and 0 <= column < width
                        here = x + ((image * height + row) * width + column) * inputs
                        sources[i * TILE + j] = here if inside else padding.ctypes.data
                for channel in range(0, inputs, TRANSFORMED):
                    to = codes.ctypes.data + tile * row_bytes + 2 * channel
                    simd.transform_input(sources.ctypes.data, channel, to, tiles * row_bytes)
                for i in range(OUTPUT_TILE):
                    for j in range(OUTPUT_TILE):
                        row, column = top + i, left + j
                        there = y + ((image * height + row) * width + column) * wide + offset
                        inside = row < height and column < width
                        targets[tile, i * OUTPUT_TILE + j] = there if inside else nowhere.ctypes.data
            for block in range(blocks):
                begin = channels * block
                for group in range(0, count, tile_rows):
                    for place in range(places):
                        source = codes.ctypes.data + (place * tiles + group) * row_bytes
                        at = weight + (block * places + place) * block_bytes
                        to = sums.ctypes.data + place * sum_bytes
                        simd.multiply_shorts(instructions, source, row_bytes, at, inputs // 2, to)
                    for tile in range(group, min(group + tile_rows, count)):
                        simd.transform_output(
                            instructions, sums.ctypes.data + (tile - group) * 4 * channels, sum_bytes,
                            bias + 4 * begin, multiplier + 4 * begin,
                            targets.ctypes.data + tile * 8 * OUTPUT_TILE * OUTPUT_TILE, begin, out - begin,
                        )  # fmt: skip
        return 1

    def direct(arguments, images, x, unused, y):
        """Multiplies the window of every output place; images that need padding are copied, a few at a time.

        With `skipped`, the number of kernel rows, those that lie in padding of zeros are left out.
        """
        (height, width, inputs, result_rows, result_columns, wide, pixel, stride, padding, zero_point, offset, out,
         blocks, all_steps, skipped, offsets, weight, bias, multiplier, wide_multiplier, logits,
         relu) = simd.arguments(arguments, 22)  # fmt: skip
        copied, most = padding > 0 or pixel != inputs, PANEL * rows
        together = min(images, max(1, most // (result_rows * result_columns))) if copied else images
        lines, columns = height + 2 * padding, width + 2 * padding
        padded = np.full((together if copied else 0, lines, columns, pixel), zero_point, np.uint8)
        given_bytes, image_bytes, row_bytes = height * width * inputs, lines * columns * pixel, columns * pixel
        sources, targets, tops = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
        sums = np.empty((most if logits else 0, blocks * channels), np.int32)
        integers = carray(simd.pointer(y), (images * result_rows * result_columns, out), np.int64)  # if logits
        factors_of_integers = carray(simd.pointer(wide_multiplier), (out,), np.int64)
        kernel_rows = max(1, skipped)
        lows, highs = np.zeros(PANEL, np.int64), np.full(PANEL, kernel_rows, np.int64)
        row_steps = all_steps // kernel_rows
        target, done = y + offset, 0
        for first in range(0, images, together):
            here = min(together, images - first)
            if copied:
                given = carray(simd.pointer(x + first * given_bytes), (here, height, width, inputs), np.uint8)
                for k in range(here):
                    for i in range(height):
                        for j in range(width):
                            for c in range(inputs):
                                padded[k, i + padding, j + padding, c] = given[k, i, j, c]
            source = padded.ctypes.data if copied else x
            left = here * result_rows * result_columns
            image, i, j = 0, 0, 0
            while left > 0:
                count = min(most, left)
                left -= count
                for k in range(count):
                    sources[k] = source + image * image_bytes + stride * (i * row_bytes + j * pixel)
                    targets[k], tops[k] = target, stride * i - padding
                    target += wide
                    j += 1
                    if j == result_columns:
                        i, j = i + 1, 0
                        if i == result_rows:
                            image, i = image + 1, 0
                if logits:
                    for k in range(count):
                        targets[k] = sums[k].ctypes.data
                for k in range(count, (count + rows - 1) // rows * rows):  # the last one again
                    sources[k], targets[k] = sources[count - 1], targets[count - 1]
                if skipped and padding:
                    for group in range(0, count, rows):
                        highest, lowest = tops[group], tops[group]
                        for k in range(group, min(group + rows, count)):
                            highest, lowest = max(highest, tops[k]), min(lowest, tops[k])
                        lows[group // rows], highs[group // rows] = max(0, -highest), min(kernel_rows, height - lowest)
                        if lows[group // rows] >= highs[group // rows]:  # padding alone, which is 0
                            lows[group // rows], highs[group // rows] = 0, kernel_rows
                for block in range(blocks):
                    begin = channels * block
                    at = weight + block * all_steps * channels * 4
                    for group in range(0, count, rows):
                        these, there = sources.ctypes.data + 8 * group, targets.ctypes.data + 8 * group
                        low, high = lows[group // rows], highs[group // rows]
                        steps, read = (high - low) * row_steps, low * row_steps
                        taps, factors = offsets + 4 * read, at + 4 * channels * read
                        if logits:
                            simd.add_products(
                                instructions, these, steps, taps, factors, bias + 4 * begin, there, begin,
                            )  # fmt: skip
                        else:
                            simd.multiply_codes(
                                instructions, these, steps, taps, factors,
                                bias + 4 * begin, multiplier + 4 * begin, there, begin, out - begin,
                            )  # fmt: skip
                if logits:
                    for k in range(count):
                        for c in range(out):
                            value = sums[k, c] * factors_of_integers[c]
                            integers[done + k, c] = max(value, 0) if relu else value
                    done += count
        return 1

    return simd.step({"Winograd": winograd, "Direct": direct}[kind])
