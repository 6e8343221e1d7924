"""Points for optimisers: all valid, quintile among them, one number one code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.space import Space
from tests.calibrated import calibrated

CALIBRATIONS = [calibrated(15, 35, 255, search_tmax=free) for free in (False, True)]


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_quintile_has_a_point(calibration):
    space = Space(calibration)
    point = space.point(calibration.quintile)
    assert (space.lower <= point).all() and (point <= space.upper).all()
    assert space.configuration(point) == calibration.quintile


def test_a_point_by_hand():
    assert Space(calibrated(15)).configuration(np.array([12, 1, 5, 5])) == ((1, 6, 7, 15),)
    assert Space(calibrated(15)).configuration(np.array([99.0, -3, 4.6, 5.4])) == ((1, 6, 7, 15),)
    free = Space(calibrated(15, search_tmax=True))
    assert free.configuration(np.array([1, 252, 5, 5, 252])) == ((1, 6, 7, 255, 255),)


@given(st.sampled_from(CALIBRATIONS), st.integers(0, 2**32 - 1), st.floats(1, 1000))
def test_every_point_is_a_valid_configuration_and_comes_back(calibration, seed, far):
    space, generator = Space(calibration), np.random.default_rng(seed)
    configuration = space.configuration(generator.normal(space.upper / 2, far))
    assert calibration.valid(configuration)
    assert {type(code) for layer in configuration for code in layer} == {int}
    assert space.configuration(space.point(configuration)) == configuration


@given(st.sampled_from(CALIBRATIONS), st.integers(0, 2**32 - 1))
def test_every_valid_configuration_has_a_point(calibration, seed):
    space = Space(calibration)
    configuration = calibration.random(np.random.default_rng(seed))
    assert space.configuration(space.point(configuration)) == configuration


def test_a_step_of_a_number_is_a_step_of_one_code():
    calibration = calibrated(35, 110)
    space = Space(calibration)
    start = space.point(calibration.quintile)
    for number in range(len(start)):
        moved = space.configuration(start + (np.arange(len(start)) == number))
        difference = np.array(moved) - np.array(calibration.quintile)
        assert difference.ravel().tolist() == (np.arange(len(start)) == number).tolist()


def test_points_around_another_one_move_as_many_numbers_as_far_as_asked():
    calibration = calibrated(255)
    space, generator = Space(calibration), np.random.default_rng(0)
    start = space.point(calibration.quintile)
    steps = np.array([space.around(start, 2, 0.06, generator) for _ in range(2000)]) - start
    assert np.count_nonzero(steps, axis=1).max() == 2
    assert steps[steps != 0].std() == pytest.approx(0.06 * 255, rel=0.1)


def test_points_around_are_stretched_where_tmax_is_searched():
    calibration = calibrated(120, 120, search_tmax=True)
    space, generator = Space(calibration), np.random.default_rng(0)
    start = space.point(calibration.quintile)
    drawn = [space.configuration(space.around(start, 1, 0.06, generator)) for _ in range(500)]
    assert all(map(calibration.valid, drawn))
    factors = np.array([[layer[4] / 120 for layer in one] for one in drawn])
    assert np.log(np.median(factors, 1)).std() == pytest.approx(0.25, rel=0.2)
