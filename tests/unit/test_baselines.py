"""Baselines as tables of codes."""

import numpy as np
import pytest

from approx_env.lookup import EXACT, SHARED, ZERO
from approx_env.scoring import baselines
from approx_env.scoring.calibration import Calibration, Layer, observe

CODES = np.arange(256)


def calibration_of(*histograms) -> Calibration:
    layers = (Layer(f"l{k}", np.asarray(h, np.int64), 35, observe(h, 0.0)) for k, h in enumerate(histograms))
    return Calibration(tuple(layers), 90.0, 10)


def test_threshold_only():
    table = baselines.threshold(3)
    assert table.values.tolist() == [0, 0, 0, 0, *range(4, 256)]
    assert table.kinds.tolist() == [ZERO] + [EXACT] * 255
    assert baselines.threshold(0).values.tolist() == list(range(256))
    assert not baselines.threshold(255).values.any()


@pytest.mark.parametrize(
    ("clip", "bits", "levels"),
    [(3, 2, [0, 1, 2, 3]), (10, 2, [0, 3, 7, 10]), (255, 3, [0, 36, 73, 109, 146, 182, 219, 255])],
)
def test_levels_of_uniform_activations(clip, bits, levels):
    table = baselines.uniform(clip, bits)
    assert np.unique(table.values).tolist() == levels
    assert table.kinds.tolist() == [ZERO] + [SHARED] * 255
    assert (table.values[clip:] == clip).all()


@pytest.mark.parametrize("bits", baselines.BITS)
def test_each_code_becomes_the_nearest_level(bits):
    for clip in (2**bits - 1, 29, 100, 254, 255):
        values = baselines.uniform(clip, bits).values.astype(int)
        levels = np.array([int(np.floor(k * clip / (2**bits - 1) + 0.5)) for k in range(2**bits)])
        assert np.unique(values).tolist() == levels.tolist()  # all are used, none twice
        distances = np.abs(CODES[:, None] - levels)
        assert np.array_equal(np.abs(CODES - values), distances.min(1))
        ties = (distances == distances.min(1, keepdims=True)).sum(1) == 2
        assert (values[ties] > CODES[ties]).all()


def test_the_best_clip_by_hand():
    histogram = np.zeros(256, int)
    histogram[[0, 10, 20, 30]] = 100, 5, 5, 5
    assert baselines.best_clip(histogram, 2) == 30  # levels 0, 10, 20, 30: no error
    histogram[200] = 1  # one code far away changes the range, but only so much
    clip = baselines.best_clip(histogram, 2)
    errors = [(histogram * (baselines.uniform(c, 2).values - CODES) ** 2).sum() for c in range(3, 256)]
    assert clip == 3 + int(np.argmin(errors)) and 30 < clip < 200
    assert baselines.best_clip(np.eye(256, dtype=int)[0], 4) == 15  # a layer of zeros: the first of all


def test_the_baselines_that_need_no_search():
    flat, low = np.ones(256, int), np.r_[1000, np.ones(30, int), np.zeros(225, int)]
    found = baselines.fixed(calibration_of(flat, low), (7, 3))
    assert [(each.name, each.limits) for each in found[:2]] == [("natural zeros", (0, 0)), ("threshold at t1", (7, 3))]
    assert [each.name for each in found[2:]] == ["uniform 4-bit", "uniform 3-bit", "uniform 2-bit"]
    for bits, each in zip(baselines.BITS, found[2:], strict=True):
        assert each.limits == (baselines.best_clip(flat, bits), baselines.best_clip(low, bits))
        assert each.limits[0] > 200 > 30 >= each.limits[1]
        assert [table.values.max() for table in each.tables] == list(each.limits)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.37, 1.0])
def test_thresholds_that_leave_a_given_share_exact(share):
    """Here each layer has codes 1..255 equally often, so that the share is that of the codes above the threshold."""
    calibrated, asked = calibration_of(np.ones(256, int), np.ones(256, int)), []

    def measured(baseline) -> float:
        asked.append(baseline.limits)
        return float(np.mean([(table.values > 0).sum() / 255 for table in baseline.tables]))

    found = baselines.threshold_at_share(calibrated, share, measured)
    assert len(asked) <= baselines.HALVINGS and found.limits in asked
    assert abs(measured(found) - share) <= 0.005
    assert found.name == "threshold at equal exact"
    assert [table.values.tolist() for table in found.tables] == [
        baselines.threshold(limit).values.tolist() for limit in found.limits
    ]


def test_the_nearest_share_is_taken_where_none_is_met():
    """A layer with one code above zero: all of it is exact, or nothing."""
    calibrated = calibration_of(np.r_[1, np.zeros(9, int), 5, np.zeros(245, int)])
    found = baselines.threshold_at_share(calibrated, 0.3, lambda each: float(each.limits[0] < 10))
    assert found.limits == (10,)
