"""Hill climbing from quintile: a few codes move a little, and a move that is not worse stays.

It is a (1 + lambda) evolution strategy on whole numbers: all of a generation are moved from the best configuration so
far, and that one changes when the whole generation is told. The first generation begins with quintile itself.

With `patience`, a climb that has found nothing better for so many generations begins again nearby: several codes of the
best configuration move, and the next climb starts there, however good that is.

Where tmax is searched, some configurations are stretched first: all codes of all layers by one factor. Moves of single
codes would take long to change the share of exact multiplications.

With two objectives the best are a front, and each configuration is moved from one of it, drawn at random; there are no
restarts.

Source: Beyer and Schwefel, Natural Computing 1, 2002 (evolution strategies); Lourenço, Martin and Stützle, "Iterated
local search", 2003 (restarts); Paquete, Chiarandini and Stützle, "Pareto local optimum sets in the biobjective
traveling salesman problem", 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from approx_env.tap import HIGHEST_CODE
from search.generations import Generations
from search.objectives import Score

FRONT = True
RESTART_MOVES = 8  # at most so many codes of the best configuration move where a climb begins again
Scored = tuple[Configuration, Score]


@dataclass(frozen=True)
class Options:
    """How far and how often a configuration is moved."""

    generation: int = 8  # configurations that are moved from the same one
    moves: int = 3  # at most so many codes of a configuration move; at least one does
    width: float = 0.06  # standard deviation of a move, as a share of the layer's tmax
    stretched: float = 0.25  # share of configurations that are stretched, where tmax is searched
    stretch: float = 0.25  # standard deviation of the factor's logarithm
    patience: int = 0  # generations without a better configuration, after which a climb begins again; 0: never does


class Search(Generations):
    """Climbs towards a higher return."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        super().__init__(calibration, seed, options)
        self.size = options.generation
        self._calibration, self._options = calibration, options
        self._generator = np.random.default_rng(seed)
        self._front: list[Scored] = []  # of this climb: the best so far, several where none is better than another
        self._best: Scored | None = None  # of all climbs
        self._begin: Configuration = calibration.start  # where this climb began
        self._stale = 0  # generations in which it found nothing better

    def _propose(self) -> Configuration:
        if not self._asked:
            return self._begin
        return self._moved(self._start(), self._options.moves)

    def _start(self) -> Configuration:
        if len(self._front) < 2:
            return self._front[0][0] if self._front else self._begin
        return self._front[self._generator.integers(len(self._front))][0]

    def _moved(self, start: Configuration, most: int) -> Configuration:
        """A valid configuration in which one to `most` codes are drawn anew, and that is not `start`."""
        while True:
            moved = self._drawn(start, most)
            if moved != start and self._calibration.valid(moved):
                return moved

    def _drawn(self, start: Configuration, most: int) -> Configuration:
        codes = np.array(start)
        if self._calibration.search_tmax and self._generator.random() < self._options.stretched:
            factor = np.exp(self._generator.normal(0, self._options.stretch))
            codes = np.minimum(np.rint(factor * codes), HIGHEST_CODE).astype(codes.dtype)
        count = self._generator.integers(1, most + 1)
        layers, columns = np.divmod(self._generator.choice(codes.size, count, replace=False), codes.shape[1])
        widths = self._options.width * np.array(self._calibration.tmax)[layers]
        codes[layers, columns] += np.rint(self._generator.normal(0, widths)).astype(codes.dtype)
        return tuple(tuple(layer) for layer in codes.tolist())

    def _learn(self, generation: Sequence[Configuration], scores: Sequence[Score]) -> None:
        before = [score for _, score in self._front]
        for told, score in zip(generation, scores, strict=True):
            if not any(kept.dominates(score) for _, kept in self._front):
                left = [pair for pair in self._front if pair[1] != score and not score.dominates(pair[1])]
                self._front = [*left, (told, score)]
        self._stale = 0 if {score for _, score in self._front}.difference(before) else self._stale + 1
        if 0 < self._options.patience <= self._stale and len(self._front) == 1:
            self._begin_again()

    def _begin_again(self) -> None:
        if self._best is None or not self._best[1].dominates(self._front[0][1]):
            self._best = self._front[0]
        self._begin = self._moved(self._best[0], min(RESTART_MOVES, np.size(self._best[0])))
        self._front, self._stale = [], 0
