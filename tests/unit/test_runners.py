"""The pool of processes that score: order, deaths, exceptions, and when it gives up."""

import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from approx_env.errors import InputError
from search.workers import losses, runners, session
from search.workers.losses import ScoringFailed
from search.workers.runners import Runners

RAY = {"num_cpus": 2, "object_store_memory": 2**27, "include_dashboard": False, "log_to_driver": False}


@pytest.fixture(scope="module")
def ray_of_two_cores():
    ray.init(address="local", **RAY)
    yield
    ray.shutdown()


@ray.remote(num_cpus=1)
class Actor:
    """Stands in for `Runner`: the problem says how it begins, a configuration what becomes of it."""

    def __init__(self, shared: bytes, threads: int):
        self._folder = Path(session.fetch(shared).folder)
        if (self._folder / "broken").exists():
            raise ValueError("no such engine")

    def ready(self) -> None:
        pass

    def evaluate(self, configuration: str) -> str:
        if configuration == "die":
            os._exit(1)
        if configuration == "die once" and not (self._folder / "died").exists():
            (self._folder / "died").touch()
            os._exit(1)
        if configuration == "raise":
            raise ValueError("codes are wrong")
        if configuration == "bad input":
            raise InputError(["out of memory", "ask for less"])
        with (self._folder / "scored").open("a") as file:
            print(configuration, file=file)
        return f"{configuration}!"

    def teacher_accuracy(self) -> float:
        return 0.5


@pytest.fixture
def pool(ray_of_two_cores, tmp_path, monkeypatch):
    """Makes a pool of stand-ins, which tolerates one loss of each."""
    monkeypatch.setattr(runners, "Runner", Actor)
    monkeypatch.setattr(losses, "LOSSES_TOLERATED", 1)
    return lambda count=1: closing(Runners(SimpleNamespace(folder=str(tmp_path), calibration=None), count))


def test_scores_come_in_the_order_of_the_configurations(pool):
    with pool(2) as scoring:
        assert list(scoring.evaluate([str(k) for k in range(20)])) == [f"{k}!" for k in range(20)]
        assert scoring.teacher_accuracy() == 0.5
        assert list(scoring.evaluate([])) == []


def test_a_free_process_takes_what_begins_like_its_last_one(pool, tmp_path):
    with pool() as made:
        assert list(made.evaluate(["abd", "xyz", "acd", "xyy", "abc"])) == ["abd!", "xyz!", "acd!", "xyy!", "abc!"]
    assert (tmp_path / "scored").read_text().split() == ["abd", "abc", "acd", "xyz", "xyy"]


def test_nothing_waits_long_for_what_begins_alike(pool, tmp_path):
    names = ["ab", "xy", *(f"a{k}" for k in range(20))]
    with pool() as made:
        assert len(list(made.evaluate(names))) == len(names)
    assert (tmp_path / "scored").read_text().split().index("xy") <= 2 * runners.LOOK_AHEAD


def test_the_work_of_a_process_that_dies_is_done_by_another(pool):
    with pool(1) as scoring:
        assert list(scoring.evaluate(["a", "die once", "b"])) == ["a!", "die once!", "b!"]
        assert scoring.teacher_accuracy() == 0.5


def test_without_processes_this_one_scores(pool, monkeypatch):
    here = SimpleNamespace(evaluate=lambda configuration: f"{os.getpid()} {configuration}", teacher_accuracy=lambda: 1)
    monkeypatch.setattr(runners, "Scorer", lambda problem, threads: here)
    with pool(0) as scoring:
        assert list(scoring.evaluate(["a", "b"])) == [f"{os.getpid()} a", f"{os.getpid()} b"]
        assert scoring.teacher_accuracy() == 1


def test_a_process_that_always_dies_is_given_up(pool):
    with pool(1) as scoring, pytest.raises(ScoringFailed, match="lost 2 times in a row"):
        list(scoring.evaluate(["a", "die"]))


def test_an_exception_is_said_with_its_text_and_is_not_tried_again(pool):
    with pool(1) as scoring, pytest.raises(ScoringFailed, match="ValueError: codes are wrong"):
        list(scoring.evaluate(["raise"]))


def test_bad_input_stays_bad_input(pool):
    with pool(1) as scoring, pytest.raises(InputError) as error:
        list(scoring.evaluate(["bad input"]))
    assert error.value.problems == ["out of memory", "ask for less"]
    assert not isinstance(error.value, ray.exceptions.RayError)


def test_an_exception_while_a_process_starts_is_said_and_is_not_tried_again(pool, tmp_path):
    (tmp_path / "broken").touch()
    with pool(1) as scoring, pytest.raises(ScoringFailed, match="ValueError: no such engine"):
        list(scoring.evaluate(["a"]))
