"""What ask/tell searches have in common: how they are stored, and generations that wait for all their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.evaluator import Configuration
from search.objectives import Score


class Repeatable(ABC):
    """Asks and tells as `search.algorithms.AskTell` says; a subclass keeps what it has asked and was told.

    A state is the seed and all that was told. A search that is restored begins anew, and proposes and learns the same
    again: so an optimiser of a library need not be stored.
    """

    def __init__(self, calibration: Calibration, seed: int, options: Any):
        self._arguments = calibration, seed, options
        self._asked: list[Configuration] = []  # since the search began
        self._told: list[Score] = []  # of the first of them

    @abstractmethod
    def ask(self, count: int) -> list[Configuration]:
        """As `AskTell` has it."""

    @abstractmethod
    def tell(self, configurations: Sequence[Configuration], scores: Sequence[Score]) -> None:
        """As `AskTell` has it."""

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


class Generations(Repeatable):
    """Proposes a generation, and the next one when all scores of it are told.

    The size of a generation decides what is searched, and the number of runners does not. Runners beyond the size have
    no work.
    """

    size: int  # configurations of a generation; a subclass sets it

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
