"""Coordinate search from quintile: layer by layer, from the last to the first, each of its codes up and down.

All configurations of a generation differ from the best one so far in one layer, and the next generation's layer is the
one before. So what comes before that layer is the same as in the configuration scored last, whose states the evaluator
keeps: a configuration costs the layers from there on, half of a network on average.

Source: Hooke and Jeeves, Journal of the ACM 8, 1961 (exploratory moves; a step grows with success and shrinks without).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search.generations import Generations
from search.objectives import Score

GROW, SHRINK = 1.5, 0.6
LEAST, MOST = 0.5, 1.5  # a move is this part of its code's step, drawn anew for each
CLOSER, LESS = 10, 0.8  # so often a move that is not valid is tried again, each time with a smaller step
ATTEMPTS = 1000


@dataclass(frozen=True)
class Options:
    """How far codes move."""

    step: float = 0.1  # at first, as a share of the layer's tmax


class Search(Generations):
    """Sweeps over the layers again and again."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        super().__init__(calibration, seed, options)
        self._calibration, self._generator = calibration, np.random.default_rng(seed)
        self.size = 2 * len(calibration.names)
        self._best, self._score = calibration.start, None
        self._layer = len(calibration.layers) - 1
        self._steps = options.step * np.repeat(np.array(calibration.tmax, float)[:, None], len(calibration.names), 1)

    def _propose(self) -> Configuration:
        if not self._asked:
            return self._best
        code, down = divmod(len(self._asked) % self.size, 2)
        return self._moved(code, -1 if down else 1)

    def _moved(self, code: int, sign: int) -> Configuration:
        """The best configuration with one code of the layer moved; a single step of any code if there is no room."""
        step = self._steps[self._layer, code]
        for attempt in range(ATTEMPTS):
            if attempt > CLOSER:
                code, sign = int(self._generator.integers(len(self._best[0]))), 1 - 2 * int(self._generator.integers(2))
            far = max(1, round(step * self._generator.uniform(LEAST, MOST)))
            step = step * LESS if attempt < CLOSER else 1.0
            codes = [list(layer) for layer in self._best]
            codes[self._layer][code] += far * sign
            moved = tuple(map(tuple, codes))
            if self._calibration.valid(moved):
                return moved
        return self._best  # no code of the layer can move, as with tmax 4

    def _learn(self, generation: Sequence[Configuration], scores: Sequence[Score]) -> None:
        before, steps = self._best[self._layer], self._steps[self._layer]
        best = max(range(self.size), key=lambda k: scores[k].key)
        improved = self._score is None or scores[best].key >= self._score.key
        if improved:
            self._best, self._score = generation[best], scores[best]
        for code, (old, new) in enumerate(zip(before, self._best[self._layer], strict=True)):
            steps[code] = max(1.0, steps[code] * (GROW if old != new else SHRINK))
        self._layer = (self._layer or len(self._best)) - 1
