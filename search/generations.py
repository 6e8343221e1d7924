"""What ask/tell searches have in common that propose a generation, wait for all its scores, and propose the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search.objectives import Score


class Generations(ABC):
    """Asks and tells as `search.algorithms.AskTell` says.

    The size of a generation decides what is searched, and the number of runners does not. Runners beyond the size have
    no work.

    A state is the seed and all that was told. A search that is restored begins anew, and proposes and learns the same
    again: so an optimiser of a library need not be stored.
    """

    size: int  # configurations of a generation; a subclass sets it

    def __init__(self, calibration: Calibration, seed: int, options: Any):
        self._arguments = calibration, seed, options
        self._asked: list[Configuration] = []  # since the search began
        self._told: list[Score] = []  # of the first of them

    @abstractmethod
    def _propose(self) -> Configuration:
        """The next configuration of a generation."""

    @abstractmethod
    def _learn(self, generation: Sequence[Configuration], scores: Sequence[Score]) -> None:
        """Takes a whole generation, in its order."""

    def ask(self, count: int) -> list[Configuration]:
        before = len(self._asked)
        end = (len(self._told) // self.size + 1) * self.size  # of the generation
        while len(self._asked) < min(end, before + count):
            self._asked.append(self._propose())
        return self._asked[before:]

    def tell(self, configurations: Sequence[Configuration], scores: Sequence[Score]) -> None:
        for _, score in zip(configurations, scores, strict=True):
            self._told.append(score)
            if len(self._told) % self.size == 0:
                last = slice(len(self._told) - self.size, len(self._told))
                self._learn(self._asked[last], self._told[last])

    def state(self) -> dict[str, Any]:
        told = [astuple(score) for score in self._told]
        return {"seed": self._arguments[1], "asked": len(self._asked), "told": told}

    def restore(self, state: dict[str, Any]) -> None:
        calibration, _, options = self._arguments
        self.__init__(calibration, state["seed"], options)
        scores = [Score(tuple(objectives), excess) for objectives, excess in state["told"]]
        while len(self._asked) < state["asked"]:
            self.ask(state["asked"] - len(self._asked))
            done, ready = len(self._told), min(len(self._asked), len(scores))
            self.tell(self._asked[done:ready], scores[done:ready])
