"""What TAP is compared with: simpler approximations of the same layers, as tables of codes.

- natural zeros: nothing is approximated; only the zeros that the exact network has anyway are skipped.
- threshold only: codes up to a threshold become zero, the others stay exact. Source: FATReLU, Kurtz et al., ICML 2020.
- uniform: activations of 2, 3 or 4 bits, whose range is cut off where the squared error on calibration images is least.

Thresholds and ranges follow from calibration histograms and from what is measured on validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from approx_env.lookup import EXACT, SHARED, ZERO, Lookup
from approx_env.scoring.calibration import Calibration
from approx_env.tap import CODE_COUNT

NATURAL = "natural zeros"
BITS = (4, 3, 2)
CODES = np.arange(CODE_COUNT)
HALVINGS = 8  # of the range of percentiles, when a share is to be met
CLOSE = 0.002  # to a share: as near as it has to be met


@dataclass(frozen=True)
class Baseline:
    """An approximation of every layer."""

    name: str  # as outputs show it
    limits: tuple[int, ...]  # of each layer: the threshold, or the code that the range ends at
    tables: tuple[Lookup, ...]  # of each layer


def threshold(limit: int) -> Lookup:
    """Codes up to `limit` become zero, the others stay exact.

    >>> threshold(2).values[:5].tolist()
    [0, 0, 0, 3, 4]
    """
    values = np.where(limit < CODES, CODES, 0).astype(np.uint8)
    return Lookup(values, np.where(CODES == 0, ZERO, EXACT).astype(np.uint8))


def uniform(clip: int, bits: int) -> Lookup:
    """Codes become the nearest of `2**bits` levels, evenly from 0 to `clip` and rounded to codes; a tie goes up.

    Every product with a level above 0 counts as shared: a weight has only `2**bits - 1` of them.

    Args:
        clip: at least `2**bits - 1`, so that levels are different codes; what lies above becomes this code.

    >>> uniform(9, 2).values[:12].tolist()
    [0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 9]
    """
    steps = 2**bits - 1
    levels = (2 * np.arange(steps + 1) * clip + steps) // (2 * steps)
    nearest = np.searchsorted(levels[:-1] + levels[1:], 2 * CODES, side="right")
    return Lookup(levels[nearest].astype(np.uint8), np.where(CODES == 0, ZERO, SHARED).astype(np.uint8))


def best_clip(histogram: np.ndarray, bits: int) -> int:
    """The clip of `uniform` with the least squared error of codes over a histogram `(256,)`; of several the lowest."""
    clips = range(2**bits - 1, CODE_COUNT)
    errors = [int((histogram * (uniform(clip, bits).values - CODES) ** 2).sum()) for clip in clips]
    return clips[int(np.argmin(errors))]


def thresholds(name: str, limits: Sequence[int]) -> Baseline:
    """Threshold only, by each layer's limit."""
    return Baseline(name, tuple(map(int, limits)), tuple(map(threshold, limits)))


def fixed(calibration: Calibration, t1: Sequence[int]) -> list[Baseline]:
    """The baselines that need no search.

    Args:
        t1: of each layer, in the configuration that they are compared with.
    """
    found = [thresholds(NATURAL, [0] * len(t1)), thresholds("threshold at t1", t1)]
    for bits in BITS:
        clips = tuple(best_clip(layer.histogram, bits) for layer in calibration.layers)
        found.append(Baseline(f"uniform {bits}-bit", clips, tuple(uniform(clip, bits) for clip in clips)))
    return found


def threshold_at_share(calibration: Calibration, share: float, measured: Callable[[Baseline], float]) -> Baseline:
    """Threshold only, with thresholds that leave a given share of multiplications exact, or as near as it is found.

    All layers' thresholds are the same percentile of their nonzero calibration codes.

    Args:
        share: to meet, in [0, 1].
        measured: the share that a baseline leaves exact, of the same multiplications.
    """
    low, high, best = 0.0, 100.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        limits = [layer.limit(middle) for layer in calibration.layers]
        baseline = thresholds("threshold at equal exact", limits)
        found = measured(baseline)
        if best is None or abs(found - share) < best[0]:
            best = abs(found - share), baseline
        if best[0] <= CLOSE:
            break
        low, high = (middle, high) if found > share else (low, middle)
    return best[1]
