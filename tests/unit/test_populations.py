"""CMA-ES, differential evolution, TPE and NSGA-II: where they begin, what they learn from, and that they do learn."""

import numpy as np
import pytest

from search.algorithms import cma, de, nsga2, tpe
from search.objectives import Score
from tests.calibrated import calibrated

CALIBRATION = calibrated(60, 110, 255)
MODULES = (cma, de, tpe, nsga2)
GOAL = np.array([[20, 26, 32, 52], [30, 48, 60, 96], [60, 90, 170, 190]])  # near quintile


def near(configuration) -> Score:
    """The nearer to the goal, the better."""
    distance = (np.array(configuration) - GOAL) / np.array(CALIBRATION.tmax)[:, None]
    return Score((-float((distance**2).sum()),))


def drive(search, budget: int, score=near) -> list[tuple]:
    """Configurations and scores of a whole search."""
    told = []
    while len(told) < budget:
        asked = search.ask(budget - len(told))
        scores = [score(one) for one in asked]
        search.tell(asked, scores)
        told += zip(asked, scores, strict=True)
    return told


@pytest.mark.parametrize("module", MODULES)
def test_the_first_is_quintile_and_the_others_are_near_it(module):
    first, *others = module.Search(CALIBRATION, 0).ask(8)
    assert first == CALIBRATION.quintile
    distances = np.abs(np.array(others) - np.array(first)) / np.array(CALIBRATION.tmax)[:, None]
    assert 0 < distances.max() < 0.3 and len(set(others)) == len(others)


@pytest.mark.parametrize("module", MODULES)
def test_later_ones_are_better(module):
    told = drive(module.Search(CALIBRATION, 1), 96)
    returns = np.array([score.objectives[0] for _, score in told])
    assert returns[-16:].mean() > returns[1:17].mean()
    assert returns.max() > 0.8 * near(CALIBRATION.quintile).objectives[0]  # both are negative


@pytest.mark.parametrize("module", MODULES)
def test_what_keeps_the_budget_is_what_is_learnt_from(module):
    """Returns would lead away from the goal; the excess over the budget leads to it."""

    def scored(configuration):
        return Score((-near(configuration).objectives[0],), excess=-near(configuration).objectives[0])

    excess = np.array([score.excess for _, score in drive(module.Search(CALIBRATION, 1), 96, scored)])
    assert excess[-16:].mean() < excess[1:17].mean()


def test_nsga2_spreads_over_a_front():
    """High t1 in the first layer, or low t1 in the second: either costs the other here."""

    def scored(configuration):
        first, second = configuration[0][0] / 60, configuration[1][0] / 110
        return Score((first - second, second - first - abs(first + second - 0.4)))

    told = drive(nsga2.Search(CALIBRATION, 0), 160, scored)
    front = {score.objectives for _, score in told if not any(other.dominates(score) for _, other in told)}
    assert len(front) >= 5
    ends = np.array(sorted(front))
    assert ends[-1, 0] - ends[0, 0] > 0.1


def test_a_member_of_a_population_changes_only_for_a_better_child():
    search = de.Search(CALIBRATION, 0, de.Options(population=4))
    first = search.ask(4)
    search.tell(first, [Score((value,)) for value in (0.4, 0.3, 0.2, 0.1)])
    second = search.ask(4)
    search.tell(second, [Score((value,)) for value in (0.3, 0.5, 0.1, 0.1)])
    members = [search._space.configuration(member) for member in search._members]
    assert members == [first[0], second[1], first[2], second[3]]
    assert [score.objectives[0] for score in search._scores] == [0.4, 0.5, 0.2, 0.1]
