"""Codes for a layer without an exact tail: every activation becomes 0, v1 or v2, and no multiplier is left."""

from __future__ import annotations

import numpy as np

from approx_env.tap import CODE_COUNT, HIGHEST_CODE


def least_squares(histogram: np.ndarray) -> tuple[int, int, int, int]:
    """The codes with the least squared error over a layer's histogram, when tmax is 255.

    All pairs of thresholds are tried, each with the rounded means of what lies between them. Training moves the codes
    from there. Source: Lloyd, 'Least squares quantization in PCM', IEEE Trans. Inf. Theory 28, 1982.

    Args:
        histogram: of the exact codes, `(256,)`, at least one of them nonzero.
    """
    codes = np.arange(CODE_COUNT)
    # Of all codes up to each one: how many, their sum, the sum of their squares. Zeros stay zero.
    count, total, squares = (np.cumsum(np.where(codes > 0, histogram * codes**k, 0.0)) for k in range(3))
    t1, t2 = np.meshgrid(np.arange(1, HIGHEST_CODE - 2), np.arange(3, HIGHEST_CODE), indexing="ij")
    errors, values = squares[t1], []
    for low, high in ((t1, t2), (t2, np.full_like(t2, HIGHEST_CODE))):
        n, s, q = (sums[high] - sums[low] for sums in (count, total, squares))
        value = np.clip(np.rint(s / np.maximum(n, 1)), low + 1, np.where(high < HIGHEST_CODE, high - 1, high))
        errors = errors + q - 2 * value * s + value**2 * n
        values.append(value)
    place = np.unravel_index(np.argmin(np.where(t2 >= t1 + 2, errors, np.inf)), errors.shape)
    return tuple(int(part[place]) for part in (t1, values[0], t2, values[1]))
