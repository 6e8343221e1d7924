"""Searches without learning, which score through the same evaluator as PPO."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray
import torch
from ray import tune

from approx_env import env, tap
from approx_env.calibration import Calibration
from approx_env.evaluator import Configuration, Evaluator, Problem
from search import ppo, sink

EVALUATIONS_A_STEP = 8  # by each runner, between two reports to Tune


def quintile(calibration: Calibration, seed: int) -> Iterator[Configuration]:
    """The historical configuration, once."""
    yield calibration.quintile


def random(calibration: Calibration, seed: int) -> Iterator[Configuration]:
    """Configurations drawn uniformly from the valid ones, each layer on its own."""
    generator = np.random.default_rng(seed)
    while True:
        yield tuple(tap.random_codes(tmax, generator) for tmax in calibration.tmax)


BASELINES = {"quintile": quintile, "random": random}


class _Runner:
    """Scores configurations in a process of its own."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(1)
        self._evaluator = Evaluator(problem)

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        return self._evaluator.teacher_accuracy

    def evaluate(self, configuration: Configuration) -> dict:
        """The score of a configuration, as the environment's last `info` has it."""
        return env.outcome(configuration, self._evaluator.evaluate(configuration))


Runner = ray.remote(num_cpus=1)(_Runner)


class BaselineSearch(tune.Trainable):
    """One search by a baseline as a Tune trainable.

    `config` holds `run`, `algorithm`, `seed`, `budget` and `num_env_runners`.
    """

    @classmethod
    def default_resource_request(cls, config: dict) -> tune.PlacementGroupFactory:
        return ppo.resources(config["num_env_runners"])

    def setup(self, config: dict) -> None:
        problem = sink.fetch_problem(config["run"])
        self._proposals = BASELINES[config["algorithm"]](problem.calibration, config["seed"])
        self._trial = sink.trial_name(config["algorithm"], config["seed"])
        self._recorder = sink.Recorder(config["run"], config["algorithm"], config["seed"])
        self._runners = [Runner.remote(problem) for _ in range(config["num_env_runners"])]
        self._local = None if self._runners else _Runner(problem)
        self._finished = 0

    def step(self) -> dict:
        budget = self.config["budget"]
        wanted = min(EVALUATIONS_A_STEP * max(1, len(self._runners)), budget - self._finished)
        configurations = [next(self._proposals) for _ in range(wanted)]
        for outcome in self._evaluate(configurations):
            self._recorder.add(f"{self._trial}-{self._finished}", self._finished, outcome)
            self._finished += 1
        self._recorder.wait()
        return sink.tune_metrics(self.config["run"], self._trial, budget)

    def _evaluate(self, configurations: list[Configuration]) -> Iterator[dict]:
        if self._local:
            yield from map(self._local.evaluate, configurations)
            return
        scores = [self._runners[k % len(self._runners)].evaluate.remote(c) for k, c in enumerate(configurations)]
        yield from (ray.get(score) for score in scores)

    def cleanup(self) -> None:
        for runner in self._runners:
            ray.kill(runner)
