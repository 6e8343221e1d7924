import numpy as np
import pytest

from approx_env import tap
from approx_env.engines import reference
from approx_env.errors import InputError
from approx_env.scoring import calibration
from tests.calibrated import calibrated


def histogram(counts: dict[int, int]) -> np.ndarray:
    found = np.zeros(256, np.int64)
    for code, count in counts.items():
        found[code] = count
    return found


def images(*codes: int) -> np.ndarray:
    """Images of the network 'ramp' with those codes: 8 an image, filled up with zeros."""
    pixels = np.full(-(-len(codes) // 8) * 8, 128, np.uint8)
    pixels[: len(codes)] += np.array(codes, np.uint8)
    return pixels.reshape(-1, 1, 1, 8)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({code: 1 for code in range(1, 11)}, 90, 9),  # 9 of 10 codes do not exceed 9
        ({code: 1 for code in range(1, 11)}, 90.1, 10),
        ({code: 1 for code in range(1, 11)}, 100, 10),
        ({3: 9, 200: 1}, 90, 3),
        ({3: 8, 200: 2}, 90, 200),
        ({0: 5}, 90, 0),
        ({255: 1}, 1, 255),
        ({}, 90, 0),
        ({1: 9 * 10**15, 2: 10**15}, 90, 1),
    ],
)
def test_percentile(counts, share, expected):
    assert calibration.percentile(histogram(counts), share) == expected


def test_observation_by_hand():
    # mean 1, variance (3 * 1 + 9) / 4 = 3, nine tenths of four codes: all of them
    observed = calibration.observe(histogram({0: 3, 4: 1}), 0.25)
    assert observed.dtype == np.float32
    assert observed.tolist() == pytest.approx([0.25, 1 / 255, 3**0.5 / 128, 4 / 255])


def test_observation_of_extremes_stays_in_the_unit_box():
    assert calibration.observe(histogram({255: 7}), 1.0).tolist() == [1, 1, 0, 1]
    assert calibration.observe(histogram({0: 1, 255: 1}), 0.0)[2] == pytest.approx(127.5 / 128)


@pytest.mark.parametrize(
    ("codes", "offset", "tmax"),
    [
        (range(1, 101), 10, 100),  # p90 is 90
        (range(1, 101), 0, 90),
        (range(1, 101), -20, 70),
        ([1, 2, 3], 10, 15),  # 13 is lifted to 15
        ([2, 5], 10, 15),
        ([6], 10, 16),
        ([127], 200, 255),  # cut at 255
        ([50], -100, 15),
    ],
)
def test_tmax_rule(ramp, codes, offset, tmax):
    found = calibration.calibrate(ramp, [images(*codes)], tmax_offset=offset)
    assert found.tmax == (tmax,)


def test_zeros_do_not_count_for_tmax_but_for_the_observation(ramp):
    few = calibration.calibrate(ramp, [images(*[40] * 8)]).layers[0]
    many = calibration.calibrate(ramp, [images(*[40] * 8, *[0] * 800)]).layers[0]
    assert few.tmax == many.tmax == 50
    assert few.observation[3] == pytest.approx(40 / 255)
    assert many.observation[3] == 0


def test_other_percentile(ramp):
    found = calibration.calibrate(ramp, [images(*range(1, 101))], tmax_percentile=50.0, tmax_offset=3)
    assert found.tmax == (53,)
    assert (found.percentile, found.offset) == (50.0, 3)


def test_histogram_counts_all_codes_of_all_batches(ramp):
    found = calibration.calibrate(ramp, [images(1, 1, 2), images(2, 90)]).layers[0]
    assert found.histogram.tolist() == histogram({0: 11, 1: 2, 2: 2, 90: 1}).tolist()
    assert found.histogram.dtype == np.int64


def test_batches_do_not_matter(small):
    whole = calibration.calibrate(small.network, [small.images])
    parts = calibration.calibrate(small.network, np.split(small.images, 6))
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert np.array_equal(one.histogram, other.histogram)
        assert np.array_equal(one.observation, other.observation)
    assert whole.tmax == parts.tmax


def test_layers_in_forward_order_with_their_depth(small):
    found = calibration.calibrate(small.network, [small.images])
    assert [layer.name for layer in found.layers] == ["one", "two", "three"]
    assert [layer.observation[0] for layer in found.layers] == [0, 0.5, 1]
    shapes = [small.network.shapes[layer.name] for layer in found.layers]
    assert [layer.histogram.sum() for layer in found.layers] == [48 * np.prod(shape) for shape in shapes]


def test_later_layers_see_exact_codes(small):
    """Histograms are the teacher's: nothing is approximated while they are counted."""
    exact = reference.forward(small.network, small.images)
    for layer in calibration.calibrate(small.network, [small.images]).layers:
        counted = np.bincount(exact[layer.name].reshape(-1), minlength=256)
        assert np.array_equal(layer.histogram, counted)


def test_quintile_start_and_share_approximated(ramp):
    found = calibration.calibrate(ramp, [images(*[25] * 9, 100, 0, 0)])
    assert found.tmax == (35,)
    assert found.quintile == ((7, 14, 21, 28),)
    assert found.layers[0].approximated == 0.9  # of ten nonzero codes


def test_a_searched_tmax_is_a_fifth_code_that_starts_at_the_calibrated_one(ramp):
    fixed = calibration.calibrate(ramp, [images(*[25] * 9, 100)])
    found = calibration.calibrate(ramp, [images(*[25] * 9, 100)], search_tmax=True)
    assert (found.names, found.quintile) == (("t1", "v1", "t2", "v2", "tmax"), ((7, 14, 21, 28, 35),))
    assert (found.tmax, found.layers[0].observation.tolist()) == (fixed.tmax, fixed.layers[0].observation.tolist())
    assert found.valid([(1, 2, 3, 90, 90)]) and fixed.valid([(1, 2, 3, 35)])
    for one, configurations in (
        (fixed, [[(1, 2, 3, 36)], [(1, 2, 3, 4, 35)], [], [(1, 2, 3, 4)] * 2]),
        (found, [[(1, 2, 3, 4)], [(1, 2, 3, 9, 8)], [(1, 2, 3, 4, 256)], [], [(1, 2, 3, 4, 5)] * 2]),
    ):
        assert not any(map(one.valid, configurations))


def test_random_configurations_are_valid_and_spread_over_shares_of_exact_codes():
    found, generator = calibrated(100, 150, 255, search_tmax=True), np.random.default_rng(0)
    drawn = [found.random(generator) for _ in range(1000)]
    assert all(map(found.valid, drawn))
    above = [[layer.histogram[codes[4] + 1 :].sum() / layer.histogram[1:].sum() for layer, codes in
              zip(found.layers, one, strict=True)] for one in drawn]  # fmt: skip
    assert np.histogram(np.mean(above, 1), 4, (0, 1))[0].min() > 150
    assert np.corrcoef(np.transpose(above)).min() > 0.7  # layers go together


def test_random_configurations_under_fixed_tmax_are_drawn_layer_by_layer():
    found = calibrated(15, 40, 200)
    expected = np.random.default_rng(5)
    assert found.random(np.random.default_rng(5)) == tuple(tap.random_codes(tmax, expected) for tmax in found.tmax)


def test_table(ramp):
    found = calibration.calibrate(ramp, [images(*[25] * 9, 100)])
    assert found.table() == "ramp: t1=7 v1=14 t2=21 v2=28 tmax=35 (p90+10), 90.0 % of nonzero"
    other = calibration.calibrate(ramp, [images(*[25] * 9, 100)], tmax_percentile=92.5, tmax_offset=-3)
    assert other.table().endswith("tmax=97 (p92.5-3), 90.0 % of nonzero")


def test_table_lines_up(evaluator):
    lines = evaluator.calibration.table().splitlines()
    assert len(lines) == len(evaluator.layers)
    assert len({line.index("t1=") for line in lines}) == 1


def test_layer_that_is_always_zero(ramp):
    with pytest.raises(InputError) as caught:
        calibration.calibrate(ramp, [images(0)])
    assert str(caught.value) == ("layer ramp is zero on every calibration image: the teacher is broken, train another")
