"""Searches by a sampler of Optuna: the points of `search.space`, asked for and told in generations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search.generations import Generations
from search.objectives import Score
from search.space import Space

MOVES = 3  # codes of each of the first configurations that are not quintile's

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study(Generations):
    """A study in memory.

    The first configurations are quintile and others near it: Optuna's own start, uniform draws, costs as much and is
    worth nothing.

    Args:
        sampler: Optuna's, with a seed of its own.
        size: configurations of a generation.
        start: how many come first, a generation at least.
        width: their standard deviation around quintile, as a share of a layer's tmax.
    """

    def __init__(
        self,
        calibration: Calibration,
        seed: int,
        options: Any,
        sampler: optuna.samplers.BaseSampler,
        size: int,
        start: int,
        width: float,
    ):
        super().__init__(calibration, seed, options)
        if start < size:
            raise ValueError(f"a study starts with a generation at least: start must be {size} or more, got {start}")
        self.size, self._first, self._width, self._sampler = size, start, width, sampler
        self._space, self._generator = Space(calibration), np.random.default_rng(seed)
        self._start = self._space.point(calibration.start)
        # Floats that are rounded later: Optuna takes 2.5 times as long for whole numbers.
        bounds = zip((self._space.lower - 0.5).tolist(), (self._space.upper + 0.5).tolist(), strict=True)
        self._distributions = {
            f"{number:04}": optuna.distributions.FloatDistribution(*pair) for number, pair in enumerate(bounds)
        }
        self._study: optuna.Study | None = None  # once it is known how many objectives there are
        self._trials: list[optuna.Trial] = []  # of this generation

    def _propose(self) -> Configuration:
        if len(self._asked) < self._first:
            point = self._start
            if self._asked:
                point = self._space.around(point, MOVES, self._width, self._generator)
            if self._study is not None:
                self._begin(point)
            return self._space.configuration(point)
        self._trials.append(self._study.ask(self._distributions))
        return self._space.configuration(np.array(list(self._trials[-1].params.values())))

    def _begin(self, point: np.ndarray) -> None:
        """Starts a trial with a point that is not the sampler's."""
        self._study.enqueue_trial(dict(zip(self._distributions, point.tolist(), strict=True)))
        trial = self._study.ask(self._distributions)
        _ = trial.relative_params  # else NSGA-II would not count it among a generation
        self._trials.append(trial)

    def _learn(self, generation: Sequence[Configuration], scores: Sequence[Score]) -> None:
        if self._study is None:
            directions = ["maximize"] * len(scores[0].objectives)
            self._study = optuna.create_study(sampler=self._sampler, directions=directions)
            for configuration in generation:
                self._begin(self._space.point(configuration))
        for trial, score in zip(self._trials, scores, strict=True):
            trial.set_constraint("budget", score.excess)
            self._study.tell(trial, score.objectives)
        self._trials = []
