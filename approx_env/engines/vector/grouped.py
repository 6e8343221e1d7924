"""Grouped and depthwise convolutions for CPUs: integer loops that the compiler turns into vector instructions."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from approx_env.engines.vector import simd
from approx_env.engines.vector.steps import Step, sides
from approx_env.int8 import nodes
from approx_env.int8.nodes import Convolution

_compiled = simd.compiled


class Grouped:
    """A convolution's weights in the order in which they are read: `(height, width, group, in, out)`.

    Args:
        node: a convolution.
        zero_point: of its input, 0..255.
    """

    def __init__(self, node: Convolution, zero_point: int):
        self._geometry = (node.stride, node.padding)
        self._zero_point, self._logits, self._relu = zero_point, node.logits, node.relu
        parts = node.weight.reshape(node.groups, -1, *node.weight.shape[1:])
        self._weight = np.ascontiguousarray(parts.transpose(3, 4, 0, 2, 1), np.int32)
        self._bias = np.ascontiguousarray(node.bias)
        self._multiplier = (node.multiplier / (1 << nodes.SHIFT)).astype(np.float32)  # exact
        self._wide_multiplier = node.multiplier.astype(np.int64)

    def step(self, shape: tuple[int, ...], into: tuple[int, ...], offset: int) -> Step:
        """Writes into channels `offset..offset + out` of a tensor of the shape `into`, from one of `shape`."""
        return Step(
            _code(),
            (*sides(shape), *sides(into), *self._geometry, self._zero_point, offset, *self._weight.shape, self._weight,
             self._bias, self._multiplier, self._wide_multiplier, self._logits, self._relu),
        )  # fmt: skip


@cache
def _code() -> CFunc:
    return simd.step(_convolve)


def _convolve(arguments, images, x, unused, y):
    """Writes the codes of every output place, or the products of sums and multipliers where they are logits."""
    (height, width, inputs, rows, columns, wide, stride, padding, zero_point, offset, kernel_rows, kernel_columns,
     groups, of_group, outputs, weight, bias, multiplier, wide_multiplier, logits,
     relu) = simd.arguments(arguments, 21)  # fmt: skip
    out = groups * outputs
    source = carray(simd.pointer(x), (images, height, width, inputs), np.uint8)
    weights = carray(simd.pointer(weight), (kernel_rows, kernel_columns, groups, of_group, outputs), np.int32)
    biases = carray(simd.pointer(bias), (out,), np.int32)
    multipliers = carray(simd.pointer(multiplier), (out,), np.float32)
    codes = carray(simd.pointer(y), (images, rows, columns, wide), np.uint8)
    integers = carray(simd.pointer(y), (images, rows, columns, wide), np.int64)  # of logits
    integer_multipliers = carray(simd.pointer(wide_multiplier), (out,), np.int64)
    sums = np.empty(out, np.int32)
    for image in range(images):
        for i in range(rows):
            for j in range(columns):
                sums[:] = biases
                for row in range(kernel_rows):
                    top = i * stride - padding + row
                    if top < 0 or top >= height:
                        continue
                    for column in range(kernel_columns):
                        left = j * stride - padding + column
                        if 0 <= left < width:
                            _accumulate(source[image, top, left], np.int32(zero_point), weights[row, column], sums)
                if not logits:
                    _requantise(sums, multipliers, codes[image, i, j, offset : offset + out])
                    continue
                for c in range(out):
                    value = sums[c] * integer_multipliers[c]
                    integers[image, i, j, c] = max(value, 0) if relu else value
    return 1


@_compiled
def _accumulate(codes, zero_point, weight, sums):
    """Adds the products of one pixel's codes `(group * in,)` and `weight (group, in, out)` to `sums (group * out,)`."""
    groups, inputs, outputs = weight.shape
    if inputs == outputs == 1:
        depthwise = weight.reshape(groups)
        for c in range(groups):
            sums[c] += (np.int32(codes[c]) - zero_point) * depthwise[c]
        return
    for group in range(groups):
        for k in range(inputs):
            code, first = np.int32(codes[group * inputs + k]) - zero_point, group * outputs
            for o in range(outputs):
                sums[first + o] += code * weight[group, k, o]


@_compiled
def _requantise(sums, multiplier, codes):
    """The definition in `int8.nodes`, which says why float32 is exact."""
    for c in range(sums.size):
        value = np.float32(np.float32(sums[c]) * multiplier[c]) + np.float32(0.5)
        codes[c] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))
