"""The tri-segment activation approximation (TAP) of INT8 codes: what it does, and which codes are valid.

A layer's activations are codes `c` in 0..255 (`z = 0` behind a ReLU). Its four codes `(t1, v1, t2, v2)` and its
`tmax` define

    TAP(c) = 0   for      c <= t1
             v1  for t1 < c <= t2
             v2  for t2 < c <= tmax
             c   for      c >  tmax          valid:  1 <= t1 < v1 < t2 < v2 <= tmax <= 255

Where a search chooses tmax as well, it is a layer's fifth code, `(t1, v1, t2, v2, tmax)`, and takes the place of the
calibrated one.

This module is the definition; `approx_env.engines.vector.kernels` holds its fast twin.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CODES = ("t1", "v1", "t2", "v2")  # the order of an action, everywhere
WITH_TMAX = (*CODES, "tmax")  # the same where tmax is searched, too
HIGHEST_CODE = 255
CODE_COUNT = HIGHEST_CODE + 1
LOWEST_TMAX = 4  # below it no valid codes exist


def problems(codes: Sequence[int], tmax: int) -> list[str]:
    """Says why `codes` are not valid under `tmax`, or under the fifth of them (an empty list: they are)."""
    values = np.asarray(codes)
    if values.shape not in ((4,), (5,)) or not np.issubdtype(values.dtype, np.integer):
        return [f"codes must be four integers (t1, v1, t2, v2), or five with tmax, got {codes!r}"]
    t1, v1, t2, v2, tmax = (*values.tolist(), tmax)[:5]
    if not LOWEST_TMAX <= tmax <= HIGHEST_CODE:
        return [f"tmax must lie in {LOWEST_TMAX}..{HIGHEST_CODE}, got {tmax}"]
    if not 1 <= t1 < v1 < t2 < v2 <= tmax:
        return [f"codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = {tmax}, got t1={t1} v1={v1} t2={t2} v2={v2}"]
    return []


def check(codes: Sequence[int], tmax: int) -> None:
    """Raises ValueError unless `codes` are valid under `tmax`."""
    found = problems(codes, tmax)
    if found:
        raise ValueError(found[0])


def complete(codes: Sequence | np.ndarray, tmax: int) -> np.ndarray:
    """Codes `(..., 4)` with `tmax` behind them, or `(..., 5)` as they are: `(..., 5)`.

    >>> complete((1, 2, 3, 4), 9).tolist(), complete((1, 2, 3, 4, 7), 9).tolist()
    ([1, 2, 3, 4, 9], [1, 2, 3, 4, 7])
    """
    codes = np.asarray(codes)
    if codes.shape[-1] == len(WITH_TMAX):
        return codes
    return np.concatenate([codes, np.full((*codes.shape[:-1], 1), tmax, codes.dtype)], -1)


def tap(c: np.ndarray, codes: Sequence[int], tmax: int, zero_point: int = 0) -> np.ndarray:
    """Approximates codes, the slow and plain way.

    Args:
        c: codes of any shape, `uint8`.
        codes: `(t1, v1, t2, v2)`, distances from the zero point.
        tmax: highest approximated distance from the zero point, at most `255 - zero_point`.
        zero_point: the code of 0.0, in 0..255.

    Returns:
        Codes `uint8` of the same shape.

    Raises:
        ValueError: invalid codes, tmax or zero point.
    """
    check(codes, tmax)
    if not 0 <= zero_point <= HIGHEST_CODE - tmax:
        raise ValueError(f"zero_point must lie in 0..{HIGHEST_CODE - tmax} (255 - tmax), got {zero_point}")
    t1, v1, t2, v2 = (int(code) for code in codes)
    distance = np.asarray(c, np.int64) - zero_point
    approximated = np.select([distance <= t1, distance <= t2, distance <= tmax], [0, v1, v2], distance)
    return (approximated + zero_point).astype(np.uint8)


def quintile(tmax: int) -> tuple[int, int, int, int]:
    """The historical starting point: fifths of tmax, rounded down (35 gives 7, 14, 21, 28).

    Raises:
        ValueError: tmax below 5, where fifths coincide.
    """
    codes = (tmax // 5, 2 * tmax // 5, 3 * tmax // 5, 4 * tmax // 5)
    check(codes, tmax)
    return codes


def random_codes(tmax: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws one of all `C(tmax, 4)` valid quadruples, each with the same probability."""
    t1, v1, t2, v2 = np.sort(generator.choice(tmax, 4, replace=False)) + 1
    return int(t1), int(v1), int(t2), int(v2)


def random_codes_with_tmax(generator: np.random.Generator) -> tuple[int, int, int, int, int]:
    """Draws one of all `C(256, 5)` valid quintuples `(t1, v1, t2, v2, tmax)`, each with the same probability."""
    *codes, above_tmax = np.sort(generator.choice(CODE_COUNT, 5, replace=False)) + 1  # v2 may be tmax
    return *map(int, codes), int(above_tmax) - 1
