"""Hill climbing from quintile: a few codes move a little, and a move that is not worse stays.

Configurations come in generations of a fixed size. All of a generation are moved from the best configuration so far,
and that one changes when the whole generation is told. So the size decides what is searched, and the number of runners
does not; runners beyond the size have no work. The first generation begins with quintile itself.

With two objectives the best are a front, and each configuration is moved from one of it, drawn at random. Source:
Paquete, Chiarandini and Stuetzle, "Pareto local optimum sets in the biobjective traveling salesman problem", 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.evaluator import Configuration
from search.algorithms import Score

FRONT = True


@dataclass(frozen=True)
class Options:
    """How far and how often a configuration is moved."""

    generation: int = 8  # configurations that are moved from the same one
    moves: int = 3  # at most so many codes of a configuration move; at least one does
    width: float = 0.06  # standard deviation of a move, as a share of the layer's tmax


class Search:
    """Climbs towards a higher return."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        self._calibration, self._options = calibration, options
        self._generator = np.random.default_rng(seed)
        self._best: list[tuple[Configuration, Score]] = []  # the best so far, several where none is better than another
        self._asked = 0  # of this generation
        self._told: list[tuple[Configuration, Score]] = []  # the same
        self._fresh = True  # whether quintile itself is still to be asked for

    def ask(self, count: int) -> list[Configuration]:
        count = min(count, self._options.generation - self._asked)
        self._asked += count
        return [self._next() for _ in range(count)]

    def tell(self, configurations: Sequence[Configuration], scores: Sequence[Score]) -> None:
        self._told += zip(configurations, scores, strict=True)
        if len(self._told) < self._options.generation:
            return
        for told, score in self._told:
            if not any(kept.dominates(score) for _, kept in self._best):
                left = [pair for pair in self._best if pair[1] != score and not score.dominates(pair[1])]
                self._best = [*left, (told, score)]
        self._asked, self._told = 0, []

    def state(self) -> dict[str, Any]:
        return {
            "generator": self._generator.bit_generator.state,
            "best": _plain(self._best),
            "asked": self._asked,
            "told": _plain(self._told),
            "fresh": self._fresh,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = state["generator"]
        self._best, self._told = _scored(state["best"]), _scored(state["told"])
        self._asked, self._fresh = state["asked"], state["fresh"]

    def _next(self) -> Configuration:
        if self._fresh:
            self._fresh = False
            return self._calibration.quintile
        start = self._start()
        while True:  # until the moves make a valid configuration that is another one
            moved = self._moved(start)
            if moved != start and self._calibration.valid(moved):
                return moved

    def _start(self) -> Configuration:
        if len(self._best) < 2:
            return self._best[0][0] if self._best else self._calibration.quintile
        return self._best[self._generator.integers(len(self._best))][0]

    def _moved(self, start: Configuration) -> Configuration:
        codes = np.array(start)
        count = self._generator.integers(1, self._options.moves + 1)
        layers, columns = np.divmod(self._generator.choice(codes.size, count, replace=False), codes.shape[1])
        widths = self._options.width * np.array(self._calibration.tmax)[layers]
        codes[layers, columns] += np.rint(self._generator.normal(0, widths)).astype(codes.dtype)
        return _configuration(codes)


def _plain(scored: Sequence[tuple[Configuration, Score]]) -> list[list]:
    return [[configuration, *astuple(score)] for configuration, score in scored]


def _scored(plain: Sequence[list]) -> list[tuple[Configuration, Score]]:
    return [(_configuration(codes), Score(tuple(objectives), excess)) for codes, objectives, excess in plain]


def _configuration(codes: Sequence[Sequence[int]]) -> Configuration:
    return tuple(tuple(int(code) for code in layer) for layer in codes)
