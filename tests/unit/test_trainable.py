"""The trainable that drives ask/tell algorithms: budget, rows, resumption, failures. Without Ray."""

from types import SimpleNamespace

import pytest
import ray

from approx_env.errors import InputError
from search import algorithms
from search.results import store
from search.stages import trainable
from search.stages.trainable import FAILURE, AskTellSearch
from search.workers.losses import ScoringFailed
from search.workers.processes import Needs
from tests.calibrated import calibrated

CALIBRATION = calibrated(15, 35)
ASK_TELL = [name for name in algorithms.NAMES if hasattr(algorithms.find(name), "Search")]
LAYERS = [layer.name for layer in CALIBRATION.layers]


def score(configuration) -> dict:
    return {"codes": configuration, "return": -sum(abs(code - 9) for codes in configuration for code in codes) / 100}


class Sink:
    """Stands in for the sink and everything that leads there."""

    def __init__(self, rows: dict | None = None):
        self.rows, self.recorded = dict(rows or {}), []
        self.scores = SimpleNamespace(remote=lambda trial: dict(self.rows))

    def add(self, name, episode, outcome, layer_forwards):
        self.recorded.append(episode)
        columns = store.configuration_columns(LAYERS, outcome["codes"], CALIBRATION.tmax)
        self.rows[name] = outcome | columns | {"layer_forwards": layer_forwards}

    def wait(self):
        pass

    def metrics(self, run, trial, budget):
        return {"episodes": len(self.rows), "done": len(self.rows) >= budget}


@pytest.fixture
def search(monkeypatch):
    """Makes searches over a stand-in for the sink; `evaluate` scores."""

    def begin(sink, algorithm="hill", budget=20, runners=0, evaluate=score, **options) -> AskTellSearch:
        monkeypatch.setattr(trainable.ray, "get", lambda said: said)
        monkeypatch.setattr(trainable.sink, "find", lambda run: sink)
        monkeypatch.setattr(trainable.sink, "shared_problem", lambda run: b"shared")
        monkeypatch.setattr(trainable.session, "fetch", {b"shared": "problem"}.get)
        monkeypatch.setattr(trainable.session, "fetch_calibration", {b"shared": CALIBRATION}.get)
        monkeypatch.setattr(trainable.sink, "Recorder", lambda *arguments: sink)
        monkeypatch.setattr(trainable.sink, "tune_metrics", sink.metrics)
        monkeypatch.setattr(trainable, "Scorer", lambda problem, threads: SimpleNamespace(evaluate=evaluate))
        pool = SimpleNamespace(evaluate=lambda configurations: map(evaluate, configurations), close=lambda: None)
        monkeypatch.setattr(trainable, "Runners", lambda problem, count, needs: pool)
        made = object.__new__(AskTellSearch)
        made.config = {"run": "r", "algorithm": algorithm, "options": options, "seed": 3, "budget": budget,
                       "objective": "return", "budget_exact": None, "num_env_runners": runners, "needs": Needs()}  # fmt: skip
        made.setup(made.config)
        return made

    return begin


def run(made: AskTellSearch) -> dict:
    for _ in range(100):
        if (result := made.step())["done"]:
            return result
    raise AssertionError("it never ends")


@pytest.mark.parametrize("name", ASK_TELL)
@pytest.mark.parametrize("budget", [1, 7, 20])
def test_exactly_the_budget_is_scored(search, name, budget):
    budget = 1 if algorithms.is_fixed(name) else budget
    sink = Sink()
    assert run(search(sink, name, budget))["episodes"] == budget
    assert sink.recorded == list(range(budget))
    assert list(sink.rows) == [f"{name}-seed3-{episode}" for episode in range(budget)]


@pytest.mark.parametrize("name", [name for name in ASK_TELL if not algorithms.is_fixed(name)])
def test_the_number_of_runners_changes_no_row(search, name):
    rows = []
    for runners in (0, 1, 2, 16):
        sink = Sink()
        run(search(sink, name, 50, runners))
        rows.append(sink.rows)
    assert all(other == rows[0] for other in rows)


@pytest.mark.parametrize("kept", [0, 3, 8, 13, 19])
def test_a_search_that_was_cut_off_is_told_its_rows_again_and_scores_the_others_alone(search, kept):
    whole = Sink()
    run(search(whole))
    names = list(whole.rows)
    resumed = Sink({name: whole.rows[name] for name in names[:kept]})
    run(search(resumed))
    assert resumed.rows == whole.rows
    assert resumed.recorded == list(range(kept, 20))


def test_rows_that_were_lost_from_the_middle_are_scored_again(search):
    whole = Sink()
    run(search(whole))
    resumed = Sink({name: row for k, (name, row) in enumerate(whole.rows.items()) if k not in (2, 11)})
    run(search(resumed))
    assert resumed.rows == whole.rows and resumed.recorded == [2, 11]


def test_a_search_whose_rows_have_other_codes_ends_before_it_learns_what_is_not_so(search):
    whole = Sink()
    run(search(whole))
    whole.rows["hill-seed3-5"] |= {"layer1_v2": whole.rows["hill-seed3-5"]["layer1_v2"] + 1}
    kept = Sink(whole.rows)
    ended = run(search(kept))
    assert isinstance(ended[FAILURE], InputError) and "hill-seed3-5 has other codes" in str(ended[FAILURE])
    assert kept.recorded == []


def test_a_row_says_how_many_layers_it_took_after_the_configuration_before_it(search):
    """Quintile takes both; then the last layer is swept, then the first; whoever scores, and after a break too."""
    for runners in (0, 3):
        sink = Sink()
        run(search(sink, "coordinate", 24, runners))
        taken = [row["layer_forwards"] for row in sink.rows.values()]
        assert taken[:16] + taken[17:] == [2] + [1] * 7 + [2] * 8 + [1] * 7
    resumed = Sink({name: row for k, (name, row) in enumerate(sink.rows.items()) if k < 5})
    run(search(resumed, "coordinate", 24))
    assert [row["layer_forwards"] for row in resumed.rows.values()] == taken


def test_options_reach_the_algorithm(search):
    one, other = Sink(), Sink()
    run(search(one))
    run(search(other, generation=2))
    assert one.rows != other.rows


def failing(error: Exception):
    def evaluate(configuration):
        raise error

    return evaluate


@pytest.mark.parametrize("runners", [0, 2])
def test_an_exception_ends_the_search_and_goes_to_the_driver(search, runners):
    result = search(Sink(), evaluate=failing(KeyError("fire9")), runners=runners).step()
    assert result["done"] and isinstance(result[FAILURE], ScoringFailed)
    assert "KeyError: 'fire9'" in str(result[FAILURE])


def test_bad_input_goes_to_the_driver_as_it_is(search):
    error = InputError("out of memory")
    assert search(Sink(), evaluate=failing(error)).step() == {"done": True, FAILURE: error}


def test_a_loss_is_left_to_tune_which_starts_the_search_again(search):
    with pytest.raises(ray.exceptions.ActorDiedError):
        search(Sink(), evaluate=failing(ray.exceptions.ActorDiedError())).step()


def test_an_algorithm_with_nothing_left_says_so(search):
    made = search(Sink(), "quintile", budget=2)
    made.step()
    assert "quintile-seed3 has no more to propose after 1" in str(made.step()[FAILURE])
