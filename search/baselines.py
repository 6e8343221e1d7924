"""Searches without learning, which score through the same evaluator as PPO."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray
from ray import tune

from approx_env import tap
from approx_env.calibration import Calibration
from approx_env.evaluator import Configuration
from search import ppo, sink
from search.runners import Runners, Scorer

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


class BaselineSearch(tune.Trainable):
    """One search by a baseline as a Tune trainable.

    `config` holds `run`, `algorithm`, `seed`, `budget`, `num_env_runners` and `gpus`, what each of those asks for.
    """

    @classmethod
    def default_resource_request(cls, config: dict) -> tune.PlacementGroupFactory:
        return ppo.resources(config["num_env_runners"], config["gpus"])

    def setup(self, config: dict) -> None:
        problem = sink.fetch_problem(config["run"])
        self._proposals = BASELINES[config["algorithm"]](problem.calibration, config["seed"])
        self._recorder = sink.Recorder(config["run"], config["algorithm"], config["seed"])
        count = config["num_env_runners"]
        self._runners = Runners(problem, count, config["gpus"]) if count else None
        self._local = None if count else Scorer(problem)
        self._proposed = 0
        names = [self._episode_id(episode) for episode in range(config["budget"])]
        self._written = ray.get(sink.find(config["run"]).written.remote(names))  # before this search was cut off

    def _episode_id(self, episode: int) -> str:
        return sink.episode_id(self.config["algorithm"], self.config["seed"], episode)

    def step(self) -> dict:
        budget = self.config["budget"]
        todo: list[tuple[int, Configuration]] = []
        while len(todo) < EVALUATIONS_A_STEP * max(1, self.config["num_env_runners"]) and self._proposed < budget:
            configuration = next(self._proposals)
            if self._episode_id(self._proposed) not in self._written:
                todo.append((self._proposed, configuration))
            self._proposed += 1
        outcomes = self._evaluate([configuration for _, configuration in todo])
        for (episode, _), outcome in zip(todo, outcomes, strict=True):
            self._recorder.add(self._episode_id(episode), episode, outcome)
        self._recorder.wait()
        trial = sink.trial_name(self.config["algorithm"], self.config["seed"])
        return sink.tune_metrics(self.config["run"], trial, budget)

    def _evaluate(self, configurations: list[Configuration]) -> Iterator[dict]:
        return self._runners.evaluate(configurations) if self._runners else map(self._local.evaluate, configurations)

    def cleanup(self) -> None:
        if self._runners:
            self._runners.close()
