"""Coordinate search: which layer is swept, which codes move, and what is kept."""

from itertools import pairwise

import numpy as np
import pytest

from approx_env.scoring.configuration import layer_forwards
from search.algorithms import coordinate
from search.objectives import Score
from tests.calibrated import calibrated

CALIBRATION = calibrated(60, 110, 255)


def moved(one, other) -> list[tuple[int, int, int]]:
    """Layer, code and distance of what differs."""
    difference = np.array(one) - np.array(other)
    return [(int(a), int(b), int(difference[a, b])) for a, b in zip(*np.nonzero(difference), strict=True)]


def generation(search, *keys: float, otherwise: float = 0.0) -> list:
    """Asks for a generation and tells that the first ones have these returns."""
    asked = search.ask(100)
    search.tell(asked, [Score((keys[k] if k < len(keys) else otherwise,)) for k in range(len(asked))])
    return asked


def test_layers_are_swept_from_the_last_to_the_first_and_again():
    search = coordinate.Search(CALIBRATION, 0)
    first = generation(search, 1.0)
    assert first[0] == CALIBRATION.quintile and len(first) == 8
    swept = [{layer for one in first[1:] for layer, _, _ in moved(one, first[0])}]
    swept += [{layer for one in generation(search) for layer, _, _ in moved(one, first[0])} for _ in range(4)]
    assert swept == [{2}, {1}, {0}, {2}, {1}]


def test_each_code_goes_up_and_down():
    search = coordinate.Search(CALIBRATION, 0)
    first = generation(search, 1.0)
    changes = [moved(one, first[0]) for one in generation(search)]
    assert [(code, np.sign(far)) for ((_, code, far),) in changes] == [(k // 2, 1 - 2 * (k % 2)) for k in range(8)]


def test_the_best_of_a_generation_is_kept_unless_it_is_worse():
    search = coordinate.Search(CALIBRATION, 0)
    first = generation(search, 0.5, 0.6, 0.9, 0.7)
    second = generation(search, 0.8)  # none as good
    assert all(len(moved(one, first[2])) == 1 for one in second)
    third = generation(search, 0.9)  # as good
    assert all(len(moved(one, first[2])) == 1 for one in third)
    assert all(len(moved(one, third[0])) == 1 for one in generation(search))


def test_what_keeps_the_budget_is_better_than_any_return():
    search = coordinate.Search(CALIBRATION, 0)
    asked = search.ask(8)
    search.tell(asked, [Score((0.9,), 0.1)] * 5 + [Score((0.1,))] + [Score((0.95,), 0.01)] * 2)
    assert all(len(moved(one, asked[5])) == 1 for one in search.ask(8))


def test_steps_shrink_without_success_to_single_codes():
    search = coordinate.Search(CALIBRATION, 0)
    first = generation(search, 1.0)
    far = [[abs(far) for one in generation(search) for _, _, far in moved(one, first[0])] for _ in range(45)]
    assert max(far[0]) > 5 and set(far[-1]) == set(far[-2]) == set(far[-3]) == {1}


def test_a_sweep_takes_half_of_the_layers():
    search, asked = coordinate.Search(CALIBRATION, 0), []
    for _ in range(31):
        asked += generation(search, otherwise=1.0)
    taken = [layer_forwards(one, before) for before, one in pairwise(asked)]
    assert np.mean(taken) == pytest.approx((3 + 1) / 2, abs=0.1)


def test_a_layer_without_room_moves_what_can_move():
    """tmax 15: quintile's codes are 3 apart."""
    search = coordinate.Search(calibrated(15), 0, coordinate.Options(step=1.0))
    for _ in range(20):
        asked = generation(search, otherwise=1.0)
        assert all(calibrated(15).valid(one) for one in asked)
