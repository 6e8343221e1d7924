"""Generations: how many are asked for, when they are learnt from, and what a state is."""

import pytest

from search.generations import Generations
from search.objectives import Score
from tests.calibrated import calibrated

CALIBRATION = calibrated(255)


class Counting(Generations):
    """Proposes (1, 2, 3, 4), (1, 2, 3, 5), ... and keeps what it learns."""

    size = 3

    def __init__(self, calibration, seed, options):
        super().__init__(calibration, seed, options)
        self.learnt = []

    def _propose(self):
        return ((1, 2, 3, 4 + len(self._asked)),)

    def _learn(self, generation, scores):
        self.learnt.append([(configuration[0][3], score.key) for configuration, score in zip(generation, scores)])


@pytest.fixture
def search():
    return Counting(CALIBRATION, 7, None)


def scores(*returns: float) -> list[Score]:
    return [Score((one,), excess=0.5) for one in returns]


def test_a_generation_waits_for_its_scores(search):
    first = search.ask(2)
    last = search.ask(5)
    assert (len(first), len(last), search.ask(1)) == (2, 1, [])
    search.tell(first, scores(0.1, 0.2))
    assert (search.ask(1), search.learnt) == ([], [])
    search.tell(last, scores(0.3))
    assert search.learnt == [[(4, (-0.5, 0.1)), (5, (-0.5, 0.2)), (6, (-0.5, 0.3))]]
    assert [one[0][3] for one in search.ask(9)] == [7, 8, 9]


def test_a_state_is_the_seed_and_what_was_told(search):
    asked = search.ask(3)
    search.tell(asked, scores(0.1, 0.2, 0.3))
    more = search.ask(2)
    search.tell(more[:1], scores(0.4))
    state = search.state()
    assert state == {"seed": 7, "asked": 5, "told": [((one,), 0.5) for one in (0.1, 0.2, 0.3, 0.4)]}
    other = Counting(CALIBRATION, 8, None)
    other.ask(1)
    other.restore(state)
    assert (other.learnt, other.state()) == (search.learnt, state)
    for one in (search, other):
        one.tell(more[1:], scores(0.5))
    assert other.ask(2) == search.ask(2)


def test_there_is_a_score_for_each_configuration(search):
    with pytest.raises(ValueError):
        search.tell(search.ask(2), scores(0.1))
