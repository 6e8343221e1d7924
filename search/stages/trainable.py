"""A Tune trainable that drives any ask/tell algorithm: a search with a budget, runners, rows, and resumption."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune

from approx_env.errors import InputError
from approx_env.scoring.configuration import Configuration, layer_forwards
from search import algorithms
from search.objectives import OBJECTIVES
from search.results import sink, store
from search.workers import session
from search.workers.losses import ScoringFailed, raised
from search.workers.processes import Needs
from search.workers.runners import Runners, Scorer

EVALUATIONS_AT_ONCE = 8  # that are asked for, by each runner
STEP_SECONDS = 0.5  # between two reports to Tune, which take their time
FAILURE = "failure"  # of a trial's last result: the exception that ended it, to be raised in the driver


def resources(runners: int, needs: Needs) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray: what each runner needs, on as many nodes as there are.

    The trial itself takes turns with its runners and needs no core of its own. It lives on the head, without which
    nothing goes on anyway: so no other node is one that a search could not do without.
    """
    bundles = [sink.ON_HEAD] + [needs.bundle] * runners if runners else [needs.bundle | sink.ON_HEAD]
    return tune.PlacementGroupFactory(bundles, strategy="SPREAD")


def ended_by(error: Exception) -> dict[str, Any]:
    """The last result of a trial that an error ended. Tune would start a trial that raises it again.

    Raises:
        Exception: the error itself, if another attempt may help: a process, a node or an object was lost.
    """
    reason = raised(error)
    if reason is None:
        raise error
    return {"done": True, FAILURE: reason}


class AskTellSearch(tune.Trainable):
    """One search by an ask/tell algorithm.

    `config` holds `run`, `algorithm`, its `options` as a dictionary, `seed`, `budget`, `objective`, `budget_exact`,
    `num_env_runners`, and `needs`, what each of those asks of Ray.

    A search that was cut off asks for everything again. Configurations that have rows are not scored again: the
    algorithm is told what the rows say.
    """

    @classmethod
    def default_resource_request(cls, config: dict) -> tune.PlacementGroupFactory:
        return resources(config["num_env_runners"], config["needs"])

    def setup(self, config: dict) -> None:
        shared = sink.shared_problem(config["run"])
        calibration = session.fetch_calibration(shared)
        algorithm = algorithms.find(config["algorithm"])
        options = algorithm.Options(**config["options"])
        self._search = algorithm.Search(calibration, config["seed"], options)
        self._layers = [layer.name for layer in calibration.layers]
        self._recorder = sink.Recorder(config["run"], config["algorithm"], config["seed"])
        self._trial = sink.trial_name(config["algorithm"], config["seed"])
        self._written = ray.get(sink.find(config["run"]).scores.remote(self._trial))
        count, needs = config["num_env_runners"], config["needs"]
        self._runners = Runners(shared, count, needs) if count else None
        self._local = None if count else Scorer(session.fetch(shared), needs.cores)
        self._asked, self._last = 0, ()  # how many configurations, and the last one of them

    def step(self) -> dict[str, Any]:
        end = time.monotonic() + STEP_SECONDS
        try:
            while self._asked < self.config["budget"] and time.monotonic() < end:
                self._ask_and_tell()
            self._recorder.wait()
        except Exception as error:
            return ended_by(error)
        return sink.tune_metrics(self.config["run"], self._trial, self.config["budget"])

    def _ask_and_tell(self) -> None:
        left = self.config["budget"] - self._asked
        asked = self._search.ask(min(left, EVALUATIONS_AT_ONCE * max(1, self.config["num_env_runners"])))
        if left and not asked:
            raise ScoringFailed(f"{self._trial} has no more to propose after {self._asked} configurations")
        names = [self._episode_id(self._asked + k) for k in range(len(asked))]
        outcomes = self._evaluate([one for one, name in zip(asked, names, strict=True) if name not in self._written])
        scores, befores = [], [self._last, *asked]
        for episode, (name, one, before) in enumerate(zip(names, asked, befores, strict=False), self._asked):
            if name in self._written:
                scores.append(self._row_of(name, one))
                continue
            scores.append(next(outcomes))
            self._recorder.add(name, episode, scores[-1], layer_forwards=layer_forwards(one, before))
        self._last = befores[-1]
        objective, exact = OBJECTIVES[self.config["objective"]], self.config["budget_exact"]
        self._search.tell(asked, [objective.score(outcome, exact) for outcome in scores])
        self._asked += len(asked)

    def _episode_id(self, episode: int) -> str:
        return sink.episode_id(self.config["algorithm"], self.config["seed"], episode)

    def _row_of(self, name: str, configuration: Configuration) -> dict[str, Any]:
        """The row that an earlier process has written.

        Raises:
            InputError: it is of another configuration, so that the search would learn what is not so.
        """
        row = self._written[name]
        known = store.codes_of(row, self._layers)
        if any(tuple(codes) != tuple(old)[: len(codes)] for codes, old in zip(configuration, known, strict=True)):
            raise InputError(
                f"{name} has other codes in its row than the search proposes now: the run was begun on another kind of "
                "CPU or with other versions; go on there, or start a new run"
            )
        return row

    def _evaluate(self, configurations: list[Configuration]) -> Iterator[dict]:
        return self._runners.evaluate(configurations) if self._runners else map(self._local.evaluate, configurations)

    def cleanup(self) -> None:
        if self._runners:
            self._runners.close()
