"""What every registered algorithm promises. A new one is tested by being there."""

import json
from dataclasses import is_dataclass, replace

import numpy as np
import pytest

from search import algorithms, config
from search.objectives import Score
from tests.calibrated import calibrated

BUDGET = 60
ASK_TELL = [name for name in algorithms.NAMES if hasattr(algorithms.find(name), "Search")]
TMAX = (15, 35, 110, 255)
CALIBRATIONS = {"fixed": calibrated(*TMAX), "searched": calibrated(*TMAX, search_tmax=True)}  # tmax


def score(configuration) -> Score:
    """A made-up score that differs for almost every configuration; every third or so exceeds a budget."""
    wave = np.sin(np.array(configuration, float) * 0.1)
    return Score((float(wave.sum()),), max(0.0, float(wave[0].sum()) - 0.5))


def of_a_front(configuration) -> Score:
    """The same with a second objective."""
    one = score(configuration)
    return Score((*one.objectives, -float(np.array(configuration)[:, -1].mean())), one.excess)


def drive(search, budget: int = BUDGET, at_a_time: int = 8, scored=score) -> list:
    """Asks and tells until the budget is spent, or the algorithm has no more."""
    asked = []
    while len(asked) < budget and (new := search.ask(min(at_a_time, budget - len(asked)))):
        search.tell(new, [scored(one) for one in new])
        asked += new
    return asked


@pytest.fixture(params=ASK_TELL)
def algorithm(request):
    return algorithms.find(request.param)


@pytest.fixture(params=CALIBRATIONS)
def calibration(request):
    return CALIBRATIONS[request.param]


@pytest.fixture
def begin(algorithm, calibration):
    return lambda seed=0: algorithm.Search(calibration, seed)


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_it_is_offered_and_its_options_have_defaults(name):
    module = algorithms.find(name)
    assert name in config.ALGORITHMS and module.__doc__
    assert is_dataclass(module.Options) and module.Options() == module.Options()
    assert hasattr(module, "Search") != hasattr(module, "trial")


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_options_and_settings_have_the_same_defaults(name):
    module = algorithms.find(name)
    assert algorithms.options(module, config.Settings(algorithm=name)) == module.Options()


def test_settings_reach_the_options_of_the_same_names():
    options = algorithms.options(algorithms.find("ppo"), config.Settings(lr=0.5, iteration_episodes=7))
    assert (options.lr, options.iteration_episodes, options.envs_per_runner) == (0.5, 7, 1)


def test_the_mission_s_algorithms_are_there():
    wanted = "quintile random hill coordinate cma de tpe nsga2 reconstruction ppo"
    assert set(wanted.split()) <= set(algorithms.NAMES)


def test_an_algorithm_is_a_file_that_is_put_there(tmp_path, monkeypatch):
    (tmp_path / "another.py").write_text('"""Another."""')
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
    assert algorithms.find("another").__doc__ == "Another."
    assert algorithms.names() == tuple(sorted([*algorithms.NAMES, "another"]))


def test_every_configuration_is_valid_and_plain(begin, calibration):
    asked = drive(begin())
    assert asked
    for configuration in asked:
        assert calibration.valid(configuration)
        assert {type(code) for codes in configuration for code in codes} == {int}
        assert isinstance(configuration, tuple)


def test_a_search_begins_where_it_is_told_to(algorithm, calibration):
    if hasattr(algorithm, "FIXED") or algorithm.__name__.endswith(".random"):
        return
    proposed = tuple((3, 5, 7, 11, limit)[: len(calibration.names)] for limit in TMAX)
    told, usual = (
        [np.abs(np.subtract(one, proposed)).max() for one in drive(algorithm.Search(calibrated, 0))]
        for calibrated in (replace(calibration, proposed=proposed), calibration)
    )
    assert told[0] == 0 or algorithm.__name__.endswith(".cma")
    assert np.median(told) < np.median(usual)


def test_the_same_seed_gives_the_same_search(begin, algorithm):
    assert drive(begin(3)) == drive(begin(3))
    if len(drive(begin())) == BUDGET:  # quintile is one configuration, whatever the seed
        assert drive(begin(3)) != drive(begin(4))


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 16, 1000])
def test_how_many_are_asked_for_at_a_time_changes_nothing(begin, at_a_time):
    assert drive(begin(), at_a_time=at_a_time) == drive(begin())


def test_how_many_are_told_at_a_time_changes_nothing(begin):
    search, asked, told = begin(), [], 0
    generator = np.random.default_rng(0)
    while len(asked) < BUDGET:
        new = search.ask(int(generator.integers(1, 5)))
        asked += new
        if not new and told == len(asked):
            break  # it has no more
        ready = len(asked) if not new else int(generator.integers(told, len(asked) + 1))
        search.tell(asked[told:ready], [score(one) for one in asked[told:ready]])
        told = ready
    assert asked[:BUDGET] == drive(begin())


def test_asking_never_gives_more_than_is_asked_for(begin):
    search = begin()
    assert search.ask(0) == []
    assert len(search.ask(3)) <= 3


def test_nothing_depends_on_global_random_numbers(begin):
    np.random.seed(0)
    first = drive(begin())
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    assert drive(begin()) == first
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("done", [0, 1, 5, 21])
@pytest.mark.parametrize("untold", [0, 2])
def test_a_search_that_is_stored_goes_on_the_same(begin, done, untold):
    """Between generations and in the middle of one, with scores that are still to come."""
    search = begin()
    drive(search, done, at_a_time=3)
    waiting = search.ask(untold)
    state = json.loads(json.dumps(search.state(), allow_nan=False))
    other = begin(seed=99)
    other.restore(state)
    for one in (search, other):
        one.tell(waiting, [score(configuration) for configuration in waiting])
    assert drive(search) == drive(other)


def test_telling_leaves_what_it_is_given_as_it_is(begin):
    search = begin()
    asked = search.ask(4)
    scores = [score(one) for one in asked]
    copies = list(asked), list(scores)
    search.tell(asked, scores)
    assert (asked, scores) == copies


@pytest.mark.parametrize("at_a_time", [1, 7])
def test_what_searches_fronts_takes_two_objectives(begin, algorithm, calibration, at_a_time):
    if not getattr(algorithm, "FRONT", False):
        return
    asked = drive(begin(), at_a_time=at_a_time, scored=of_a_front)
    assert asked == drive(begin(), scored=of_a_front)
    assert len(asked) == BUDGET and all(map(calibration.valid, asked))
    search = begin()
    drive(search, 21, scored=of_a_front)
    other = begin(seed=99)
    other.restore(json.loads(json.dumps(search.state(), allow_nan=False)))
    assert drive(search, scored=of_a_front) == drive(other, scored=of_a_front)
