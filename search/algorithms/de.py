"""Differential evolution from quintile: configurations move along differences of others, and the better one stays.

Each member of a population is crossed with a mutant: itself, moved towards one of the best and along the difference of
two others. All of a generation are made from the population before it.

It is written out here, in forty lines: SciPy's takes a function, not scores; pymoo would bring eight packages, and
nevergrad pins others.

Source: Storn and Price, Journal of Global Optimization 11, 1997; Zhang and Sanderson, "JADE", IEEE Transactions on
Evolutionary Computation 13, 2009, eq. 6 (current-to-pbest/1, without its archive and adaptation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search.generations import Generations
from search.objectives import Score
from search.space import Space

MOVES = 3  # codes of each of the first configurations that are not quintile's


@dataclass(frozen=True)
class Options:
    """The population, and how far its members move."""

    population: int = 16  # at least 4
    width: float = 0.06  # standard deviation of the first members around quintile, as a share of a layer's tmax
    best: float = 0.2  # share of the population that members move towards
    least: float = 0.3  # factor of a difference, drawn anew for each mutant between these two
    most: float = 0.9
    crossover: float = 0.3  # chance of each number to come from the mutant


class Search(Generations):
    """Improves a population; its first member is quintile itself."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        super().__init__(calibration, seed, options)
        if options.population < 4:
            raise ValueError(f"a population has at least 4 members, got {options.population}")
        self.size, self._options = options.population, options
        self._space, self._generator = Space(calibration), np.random.default_rng(seed)
        self._start = self._space.point(calibration.start)
        self._members = np.zeros((0, len(self._start)), int)
        self._scores: list[Score] = []  # of the members
        self._children: list[np.ndarray] = []  # of this generation

    def _propose(self) -> Configuration:
        if self._scores:
            child = self._child(len(self._children))
        elif self._children:
            child = self._space.around(self._start, MOVES, self._options.width, self._generator)
        else:
            child = self._start
        self._children.append(child)
        return self._space.configuration(child)

    def _child(self, index: int) -> np.ndarray:
        options, generator, members = self._options, self._generator, self._members
        ranked = sorted(range(self.size), key=lambda k: self._scores[k].key, reverse=True)
        best = ranked[: max(1, round(options.best * self.size))]
        others = generator.choice(np.delete(np.arange(self.size), index), 2, replace=False)
        towards = members[generator.choice(best)] - members[index]
        along = members[others[0]] - members[others[1]]
        mutant = members[index] + generator.uniform(options.least, options.most) * (towards + along)
        taken = generator.random(len(mutant)) < options.crossover
        taken[generator.integers(len(mutant))] = True
        mixed = np.where(taken, np.rint(mutant), members[index])
        return np.clip(mixed, self._space.lower, self._space.upper).astype(int)

    def _learn(self, generation: Sequence[Configuration], scores: Sequence[Score]) -> None:
        children, self._children = np.array(self._children), []
        if not self._scores:
            self._members, self._scores = children, list(scores)
            return
        for k, (child, score) in enumerate(zip(children, scores, strict=True)):
            if score.key >= self._scores[k].key:
                self._members[k], self._scores[k] = child, score
