"""Grouped and depthwise convolutions for CPUs: integer loops that the compiler turns into vector instructions."""

from __future__ import annotations

import numba
import numpy as np

from approx_env.int8 import nodes
from approx_env.int8.nodes import Convolution

_compiled = numba.njit(nogil=True, cache=True)


class Grouped:
    """A convolution's weights in the order in which they are read: `(height, width, group, in, out)`.

    Args:
        node: a convolution.
        zero_point: of its input, 0..255.
    """

    def __init__(self, node: Convolution, zero_point: int):
        self._geometry = (node.stride, node.padding)
        self._zero_point, self._logits, self.width = np.int32(zero_point), node.logits, len(node.weight)
        parts = node.weight.reshape(node.groups, -1, *node.weight.shape[1:])
        self._weight = np.ascontiguousarray(parts.transpose(3, 4, 0, 2, 1), np.int32)
        self._bias = node.bias
        self._multiplier = (node.multiplier / (1 << nodes.SHIFT)).astype(np.float32)  # exact

    def __call__(self, x: np.ndarray, y: np.ndarray, offset: int) -> None:
        """Writes the codes of `x (n, h, w, in) uint8` into channels `offset..offset + out` of `y (n, i, j, c)`.

        Of a node that gives logits, `y` is int32 and takes the sums, bias included.
        """
        sums = np.empty_like(self._bias)
        y = y[..., offset : offset + self.width]
        for image, result in zip(x, y, strict=True):
            _convolve(image, *self._geometry, self._zero_point, self._weight, self._bias, self._multiplier,
                      sums, result, self._logits)  # fmt: skip


@_compiled
def _convolve(x, stride, padding, zero_point, weight, bias, multiplier, sums, y, logits):
    """Writes codes, or sums where they are logits, of one image."""
    height, width = x.shape[:2]
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            sums[:] = bias
            for row in range(weight.shape[0]):
                top = i * stride - padding + row
                if top < 0 or top >= height:
                    continue
                for column in range(weight.shape[1]):
                    left = j * stride - padding + column
                    if 0 <= left < width:
                        _accumulate(x[top, left], zero_point, weight[row, column], sums)
            if logits:
                y[i, j] = sums
            else:
                _requantise(sums, multiplier, y[i, j])


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
