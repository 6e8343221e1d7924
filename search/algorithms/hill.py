"""Hill climbing from quintile: a few codes move a little, and a move that is not worse stays.

Configurations come in generations of a fixed size. All of a generation are moved from the best configuration so far,
and that one changes when the whole generation is told. So the size decides what is searched, and the number of runners
does not; runners beyond the size have no work. The first generation begins with quintile itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approx_env import tap
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.evaluator import Configuration
from search.algorithms import Score


@dataclass(frozen=True)
class Options:
    """How far and how often a configuration is moved."""

    generation: int = 8  # configurations that are moved from the same one
    moves: int = 3  # at most so many codes of a configuration move; at least one does
    width: float = 0.06  # standard deviation of a move, as a share of the layer's tmax


class Search:
    """Climbs towards a higher return."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        self._tmax, self._options = calibration.tmax, options
        self._generator = np.random.default_rng(seed)
        self._best: Configuration = calibration.quintile
        self._best_return: float | None = None
        self._asked = 0  # of this generation
        self._told: list[tuple[Configuration, float]] = []  # the same
        self._fresh = True  # whether quintile itself is still to be asked for

    def ask(self, count: int) -> list[Configuration]:
        count = min(count, self._options.generation - self._asked)
        self._asked += count
        return [self._next() for _ in range(count)]

    def tell(self, configurations: Sequence[Configuration], scores: Sequence[Score]) -> None:
        self._told += [(told, float(score["return"])) for told, score in zip(configurations, scores, strict=True)]
        if len(self._told) < self._options.generation:
            return
        for told, return_ in self._told:
            if self._best_return is None or return_ >= self._best_return:
                self._best, self._best_return = told, return_
        self._asked, self._told = 0, []

    def state(self) -> dict[str, Any]:
        return {
            "generator": self._generator.bit_generator.state,
            "best": _plain(self._best),
            "best_return": self._best_return,
            "asked": self._asked,
            "told": [[_plain(told), return_] for told, return_ in self._told],
            "fresh": self._fresh,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = state["generator"]
        self._best, self._best_return = _configuration(state["best"]), state["best_return"]
        self._asked, self._fresh = state["asked"], state["fresh"]
        self._told = [(_configuration(told), return_) for told, return_ in state["told"]]

    def _next(self) -> Configuration:
        if self._fresh:
            self._fresh = False
            return self._best
        while True:  # until the moves make a valid configuration that is another one
            moved = self._moved()
            if moved != self._best and not any(map(tap.problems, moved, self._tmax)):
                return moved

    def _moved(self) -> Configuration:
        codes = np.array(self._best)
        count = self._generator.integers(1, self._options.moves + 1)
        layers, columns = np.divmod(self._generator.choice(codes.size, count, replace=False), codes.shape[1])
        widths = self._options.width * np.array(self._tmax)[layers]
        codes[layers, columns] += np.rint(self._generator.normal(0, widths)).astype(codes.dtype)
        return _configuration(codes)


def _plain(configuration: Configuration) -> list[list[int]]:
    return [[int(code) for code in codes] for codes in configuration]


def _configuration(codes: Sequence[Sequence[int]]) -> Configuration:
    return tuple(tuple(int(code) for code in four) for four in codes)
