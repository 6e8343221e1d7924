"""CMA-ES with margin from quintile: a normal distribution over all codes learns where good ones are.

The margin keeps every code's chance to change above a floor, without which a distribution over whole numbers freezes.
It is `CMAwM` of the library `cmaes`, over the points of `search.space`, each number in units of its layer's tmax.

Source: Hamano et al., "CMA-ES with Margin", GECCO 2022, arXiv:2205.13482.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cmaes
import numpy as np

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search import objectives
from search.generations import Generations
from search.objectives import Score
from search.space import Space


@dataclass(frozen=True)
class Options:
    """How wide the first generation is."""

    width: float = 0.015  # standard deviation of each code, as a share of the layer's tmax


class Search(Generations):
    """Draws generations from a distribution around the best ones; the first configuration is quintile itself."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        super().__init__(calibration, seed, options)
        self._space = Space(calibration)
        unit = self._space.unit
        self._optimiser = cmaes.CMAwM(
            mean=self._space.point(calibration.start) / unit,
            sigma=options.width,
            bounds=np.stack([self._space.lower, self._space.upper], 1) / unit[:, None],
            steps=1 / unit,
            seed=seed,
        )
        self.size = self._optimiser.population_size
        self._drawn: list[np.ndarray] = []  # of this generation, before rounding

    def _propose(self) -> Configuration:
        rounded, drawn = self._optimiser.ask()
        if not self._asked:  # a sample like any other: the distribution's mean
            rounded = drawn = self._optimiser.mean.copy()
        self._drawn.append(drawn)
        return self._space.configuration(rounded * self._space.unit)

    def _learn(self, generation: Sequence[Configuration], scores: Sequence[Score]) -> None:
        losses = [-value for value in objectives.values(scores)]
        self._optimiser.tell(list(zip(self._drawn, losses, strict=True)))
        self._drawn = []
