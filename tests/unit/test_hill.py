"""Hill climbing: what moves, how far, and what is accepted."""

import numpy as np
import pytest

from search.algorithms import hill
from search.objectives import Score
from tests.calibrated import calibrated

CALIBRATION = calibrated(15, 35, 255)


def scores(*returns: float) -> list[Score]:
    return [Score((one,)) for one in returns]


def moved(configuration, other) -> np.ndarray:
    return np.array(configuration) - np.array(other)


def test_the_first_is_quintile_and_the_others_are_moved_from_it():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=200))
    first, *others = search.ask(200)
    assert first == CALIBRATION.quintile
    assert {np.count_nonzero(moved(one, first)) for one in others} == {1, 2, 3}


def test_a_move_is_a_few_percent_of_tmax():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=1000))
    first, *others = search.ask(1000)
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


def test_what_exceeds_the_budget_is_left_for_what_exceeds_it_less_and_that_for_what_keeps_it():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=3, moves=1))
    asked = search.ask(3)
    search.tell(asked, [Score((0.9,), 0.2), Score((0.1,), 0.1), Score((0.5,), 0.3)])
    second = search.ask(3)
    assert {np.count_nonzero(moved(one, asked[1])) for one in second} == {1}
    search.tell(second, [Score((0.95,), 0.01), Score((0.05,)), Score((0.04,))])
    assert {np.count_nonzero(moved(one, second[1])) for one in search.ask(3)} == {1}


def test_with_two_objectives_it_moves_from_all_of_the_front_and_from_nothing_else():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=40, moves=1))
    asked = search.ask(40)
    front = {7: (0.9, -0.5), 11: (0.8, -0.3), 12: (0.7, -0.1)}
    search.tell(asked, [Score(front.get(k, (0.6, -0.6))) for k in range(40)])
    starts = [{k for k, one in enumerate(asked) if np.count_nonzero(moved(two, one)) <= 1} for two in search.ask(40)]
    assert set().union(*starts) >= set(front) and all(some & set(front) for some in starts)


def test_it_moves_tmax_where_that_is_searched():
    free = calibrated(15, 35, 255, search_tmax=True)
    search = hill.Search(free, 0, hill.Options(generation=200))
    first, *others = search.ask(200)
    assert first == free.quintile and [codes[4] for codes in first] == [15, 35, 255]
    assert all(map(free.valid, others))
    little = [one for one in others if np.count_nonzero(moved(one, first)) <= 3]
    assert 130 < len(little) < 170  # the others are stretched
    assert any(moved(one, first)[:, 4].any() for one in little)


def test_a_stretched_configuration_is_scaled_by_one_factor():
    free = calibrated(100, 150, 200, search_tmax=True)
    search = hill.Search(free, 0, hill.Options(generation=50, stretched=1.0, moves=1))
    first, *others = search.ask(50)
    factors = np.array([np.array(one) / np.array(first) for one in others]).reshape(49, -1)
    medians = np.median(factors, 1, keepdims=True)
    assert (np.sum(abs(factors / medians - 1) > 0.04, 1) <= 4).all()  # one move, and what is cut at 255
    assert np.std(np.log(medians)) == pytest.approx(0.25, rel=0.3)


def test_a_climb_that_finds_nothing_begins_again_near_the_best_of_all():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=2, moves=1, patience=2))
    best = search.ask(2)
    search.tell(best, scores(0.5, 0.9))
    for _ in range(2):
        search.tell(search.ask(2), scores(0.1, 0.2))
    restarted = search.ask(2)
    counts = [np.count_nonzero(moved(one, best[1])) for one in restarted]
    assert max(counts) > 1
    search.tell(restarted, scores(0.1, 0.2))  # it climbs from there, although that is worse
    climbed = search.ask(2)
    assert all(np.count_nonzero(moved(one, restarted[1])) == 1 for one in climbed)
    search.tell(climbed, scores(0.1, 0.1))
    search.tell(search.ask(2), scores(0.1, 0.1))
    begun = search.ask(100)
    assert np.count_nonzero(moved(begun[0], best[1])) <= 9  # the best of all climbs, not of the last one


def test_a_front_is_never_left():
    search = hill.Search(CALIBRATION, 0, hill.Options(generation=2, moves=1, patience=1))
    asked = search.ask(2)
    search.tell(asked, [Score((0.9, -0.5)), Score((0.5, -0.1))])
    for _ in range(4):
        again = search.ask(2)
        assert all(min(np.count_nonzero(moved(one, start)) for start in asked) == 1 for one in again)
        search.tell(again, [Score((0.1, -0.9))] * 2)
