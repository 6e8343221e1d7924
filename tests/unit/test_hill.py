"""Hill climbing: what moves, how far, and what is accepted."""

from types import SimpleNamespace

import numpy as np
import pytest

from approx_env import tap
from search.algorithms import hill

TMAX = (15, 35, 255)
CALIBRATION = SimpleNamespace(tmax=TMAX, quintile=tuple(tap.quintile(tmax) for tmax in TMAX))


def scores(*returns: float) -> list[dict]:
    return [{"return": one} for one in returns]


def moved(configuration, other) -> np.ndarray:
    return np.array(configuration) - np.array(other)


def test_the_first_is_quintile_and_the_others_are_moved_from_it():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=200))
    first, *others = search.ask(200)
    assert first == CALIBRATION.quintile
    assert {np.count_nonzero(moved(one, first)) for one in others} == {1, 2, 3}


def test_a_move_is_a_few_percent_of_tmax():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=3000))
    first, *others = search.ask(3000)
    steps = np.concatenate([moved(one, first)[2] for one in others])  # of the layer whose codes are far apart
    assert np.std(steps[steps != 0]) == pytest.approx(0.06 * 255, rel=0.1)


def test_the_best_of_a_generation_is_where_the_next_begins():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=4))
    asked = search.ask(4)
    search.tell(asked, scores(0.1, 0.3, 0.7, 0.2))
    for one in search.ask(4):
        assert 1 <= np.count_nonzero(moved(one, asked[2])) <= 3


def test_what_is_not_worse_is_accepted_and_what_is_worse_is_not():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=2, moves=1))
    first = search.ask(2)
    search.tell(first, scores(0.5, 0.5))
    second = search.ask(2)
    search.tell(second, scores(0.4, 0.3))
    third = search.ask(2)
    for one in (*second, *third):
        assert np.count_nonzero(moved(one, first[1])) == 1


def test_a_generation_waits_for_its_scores_and_no_others():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=4))
    asked = search.ask(100)
    assert (len(asked), search.ask(1)) == (4, [])
    search.tell(asked[:3], scores(0, 0, 0))
    assert search.ask(1) == []
    search.tell(asked[3:], scores(0))
    assert len(search.ask(100)) == 4
