"""Configurations drawn at random, as `Calibration.random` has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search.algorithms import Score

FRONT = True


@dataclass(frozen=True)
class Options:
    """There are none."""


class Search:
    """Draws from one stream of random numbers, whatever the scores."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        self._calibration, self._generator = calibration, np.random.default_rng(seed)

    def ask(self, count: int) -> list[Configuration]:
        return [self._calibration.random(self._generator) for _ in range(count)]

    def tell(self, configurations: Sequence[Configuration], scores: Sequence[Score]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"generator": self._generator.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = state["generator"]
