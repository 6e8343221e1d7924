"""What the command starts under Tune, what it does while it waits, and what it says of a search that failed."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from approx_env.errors import InputError
from search import algorithms
from search.algorithms import reconstruction
from search.algorithms.ppo.learner import TapPPO
from search.config import Settings
from search.results.sink import Progress
from search.stages import trials
from search.stages.trainable import FAILURE, AskTellSearch
from search.workers.losses import ScoringFailed
from search.workers.processes import Needs
from tests.calibrated import calibrated

CALIBRATION = calibrated(35, 35)
DONE = Progress(0, {"hill-seed0": 8, "hill-seed1": 3}, 32, 0, None, 0.0, 0, None, False)


def job(**settings) -> SimpleNamespace:
    problem = SimpleNamespace(calibration=CALIBRATION)
    made = SimpleNamespace(name="r", settings=Settings(num_env_runners=2, **settings), problem=problem)
    made.calibration_images = lambda: "images"
    return made


@pytest.fixture(autouse=True)
def reconstructed(monkeypatch):
    """Stands in for what follows from gradients, which take a network."""
    monkeypatch.setattr(reconstruction, "start", lambda problem, images: (problem.calibration.quintile, images))


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_every_algorithm_has_a_trainable_that_knows_run_seed_and_budget(name):
    trainable, space = trials._trainable(job(algorithm=name, episodes=8, budget_exact=0.5), 3)
    if trainable is AskTellSearch:
        assert space == {"run": "r", "seed": 3, "budget": 8, "budget_exact": 0.5, "num_env_runners": 2, "needs": Needs(),
                         "algorithm": name, "options": space["options"], "objective": "return"}  # fmt: skip
        module = algorithms.find(name)
        start = {"start": (CALIBRATION.quintile, "images")} if name == "reconstruction" else {}
        assert module.Options(**space["options"]) == module.Options(**start)
    else:
        assert (trainable, space.seed, space.num_env_runners) == (TapPPO, 3, 2)
        assert space.env_config == {"run": "r", "budget": 8, "budget_exact": 0.5, "iteration_episodes": 8, "threads": 1}


def test_ppo_s_settings_reach_rllib():
    given = job(algorithm="ppo", episodes=100, lr=0.25, iteration_episodes=4, envs_per_runner=3, threads_per_runner=5)
    _, space = trials._trainable(given, 0)
    assert (space.lr, space.env_config["iteration_episodes"], space.num_envs_per_env_runner) == (0.25, 4, 3)
    assert space.train_batch_size_per_learner == 4 * 2
    assert space.num_cpus_per_env_runner == space.env_config["threads"] == 5


@pytest.fixture
def tune(monkeypatch):
    """Stands in for Tune: `results` is what its trials gave; it notes which seeds it was to run."""
    said = SimpleNamespace(results=[], errors=[], spaces=[], stages=[])

    class Results(list):
        errors = said.errors

    def watch(handle, stage):
        said.stages.append(stage)
        return nullcontext()

    def tuner(trainable, param_space, **more):
        said.spaces.append(param_space)
        return SimpleNamespace(fit=lambda: Results(SimpleNamespace(metrics=metrics) for metrics in said.results))

    monkeypatch.setattr(trials.tune, "Tuner", tuner)
    monkeypatch.setattr(trials.ray, "get", lambda answer: answer)
    monkeypatch.setattr(trials, "Watch", watch)
    said.run = lambda **settings: trials.run(job(**settings), "/nowhere", HANDLE)
    return said


HANDLE = SimpleNamespace(progress=SimpleNamespace(remote=lambda: DONE))


def test_searches_that_were_done_before_are_left(tune):
    tune.results = [{"done": True}]
    tune.run(algorithm="hill", episodes=8, seeds=(0, 1, 2))
    assert tune.spaces[0]["seed"] == {"grid_search": [1, 2]}
    assert tune.stages[0].searches == {"hill-seed0": 8, "hill-seed1": 8, "hill-seed2": 8}
    tune.run(algorithm="hill", episodes=3, seeds=(0, 1))
    assert len(tune.spaces) == 1


@pytest.mark.parametrize("error", [ScoringFailed("codes are wrong"), InputError("out of memory")])
def test_what_ended_a_search_is_raised_as_it_is(tune, error):
    tune.results = [{"done": True}, {"done": True, FAILURE: error}]
    with pytest.raises(type(error)) as raised:
        tune.run(algorithm="hill", episodes=8, seeds=(1, 2))
    assert raised.value is error


def test_a_search_that_failed_otherwise_is_told(tune):
    tune.errors.append("its process died four times")
    with pytest.raises(RuntimeError, match="a search failed: its process died four times"):
        tune.run(algorithm="hill", episodes=8, seeds=(1,))


def test_a_driver_that_waits_ends_when_another_has_taken_its_run_over(monkeypatch, capsys):
    progress = Progress(0, {}, 32, 0, None, 0.0, 1, "RuntimeError: not mine any more", True)
    handle = SimpleNamespace(progress=SimpleNamespace(remote=lambda: progress))
    monkeypatch.setattr(trials.ray, "wait", lambda answers, timeout: ([], answers))
    monkeypatch.setattr(trials.ray, "get", lambda said: said)
    with pytest.raises(KeyboardInterrupt):
        trials.patiently(handle, "an answer that never comes")
    assert capsys.readouterr().out == "another driver has taken this run over: this one ends\n"
