"""Objectives and the budget: how configurations compare."""

import itertools

import pytest

from approx_env.scoring.evaluator import Reward
from search.config import Settings
from search.objectives import OBJECTIVES, Score, aim, excess, values


def test_the_mission_s_return_is_the_default_and_both_objectives_make_it():
    settings = Settings(accuracy="soft", kd_temperature=3.0, kd_weight=0.5, at_weight=0.25)
    assert Settings().objective == "return" and list(OBJECTIVES)[:2] == ["return", "pareto"]
    for name in ("return", "pareto"):
        assert OBJECTIVES[name].reward(settings) == Reward("soft", 3.0, 0.5, 0.25)


def test_a_score_holds_the_return_and_of_a_front_the_share_of_exact_products_too():
    outcome = {"return": 0.75, "mac_exact_all": 0.25, "kd": 1.0}
    assert OBJECTIVES["return"].score(outcome, None) == Score((0.75,), 0.0)
    assert OBJECTIVES["return"].score({"return": 0.75}, None) == Score((0.75,), 0.0)  # an older run's row
    assert OBJECTIVES["pareto"].score(outcome, 0.125) == Score((0.75, -0.25), 0.125)


@pytest.mark.parametrize(
    ("share", "budget", "expected"), [(0.5, None, 0), (0.5, 0.5, 0), (0.4, 0.5, 0), (0.75, 0.5, 0.25)]
)
def test_what_exceeds_the_budget(share, budget, expected):
    assert excess({"mac_exact_all": share}, budget) == expected


def test_the_order_is_feasibility_then_return_and_excess_beyond():
    best_first = [Score((0.9,)), Score((-3.0,)), Score((0.99,), 0.01), Score((0.5,), 0.01), Score((1.0,), 0.2)]
    assert sorted(best_first, key=lambda score: score.key, reverse=True) == best_first


def test_numbers_have_the_order_of_the_keys_and_are_the_returns_within_the_budget():
    scores = [Score((0.5,)), Score((-1.0,)), Score((0.9,), 0.25), Score((0.2,), 0.125)]
    assert values(scores) == [0.5, -1.0, -1.25, -1.125]
    assert values(scores[2:]) == [0.2 - 0.25, 0.2 - 0.125]  # none keeps the budget: still the nearer, the better
    assert values([]) == []
    for some in itertools.permutations(scores):
        by_key = sorted(range(4), key=lambda k: some[k].key)
        assert by_key == sorted(range(4), key=lambda k: values(some)[k])


def test_dominance():
    a, b, c = Score((0.5, -0.25)), Score((0.75, -0.5)), Score((0.5, -0.5))
    assert not a.dominates(b) and not b.dominates(a) and not a.dominates(a)
    assert a.dominates(c) and b.dominates(c) and not c.dominates(a)
    assert Score((0.0, -1.0)).dominates(Score((1.0, 0.0), 0.01))
    assert Score((0.0, -1.0), 0.01).dominates(Score((1.0, 0.0), 0.02))
    assert Score((1.0,)).dominates(Score((0.5,))) and not Score((0.5,)).dominates(Score((1.0,)))


def test_what_a_run_is_after_is_told_where_it_is_not_the_return_alone():
    assert aim({}) == aim(vars(Settings())) == ""
    assert aim(vars(Settings(objective="pareto"))) == ", pareto"
    assert aim(vars(Settings(search_tmax=True, budget_exact=0))) == (
        ", tmax searched, at most 0 of all multiplications exact"
    )
