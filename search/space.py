"""The valid configurations as whole numbers that an optimiser may choose freely.

A layer has as many numbers as codes, each in 1..tmax - 3. Its codes are these numbers in ascending order, plus 0, 1, 2
and 3; where tmax is searched, a fifth number plus 3 is tmax, and the bound is 255 - 3. So

- every point is valid, and every valid configuration has a point: its codes, less 0, 1, 2, 3 and 3;
- a step of a number is a step of a code, and the other codes stay, unless two change places.

Stick-breaking, the other usual way, fails the second: there a number moves all codes behind its own, and quintile needs
fractions that no float holds.

    space = Space(calibration)
    space.configuration(space.point(calibration.quintile)) == calibration.quintile
"""

from __future__ import annotations

import numpy as np

from approx_env import tap
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration

OFFSETS = (0, 1, 2, 3, 3)  # keep codes apart; v2 may be tmax
STRETCH = 0.25  # standard deviation of the logarithm of a factor


class Space:
    """Points of whole numbers in `lower..upper`, layer by layer, and the configurations that they stand for."""

    def __init__(self, calibration: Calibration):
        self._offsets = np.array(OFFSETS[: len(calibration.names)])
        self._search_tmax = calibration.search_tmax
        self.unit = np.repeat(calibration.tmax, len(self._offsets))  # tmax of each number's layer
        highest = np.full_like(self.unit, tap.HIGHEST_CODE) if calibration.search_tmax else self.unit
        self.lower, self.upper = np.ones_like(self.unit), highest - OFFSETS[-1]

    def configuration(self, point: np.ndarray) -> Configuration:
        """What a point stands for; it is rounded and brought into bounds first."""
        codes = np.sort(self._within(point).reshape(-1, len(self._offsets))) + self._offsets
        return tuple(tuple(layer) for layer in codes.tolist())

    def point(self, configuration: Configuration) -> np.ndarray:
        """The point of a valid configuration whose numbers ascend within each layer."""
        return (np.asarray(configuration) - self._offsets).ravel()

    def around(self, point: np.ndarray, moves: int, width: float, generator: np.random.Generator) -> np.ndarray:
        """A point near another one: `moves` numbers move, by a standard deviation of `width` times their tmax.

        Where tmax is searched, all numbers are stretched by one factor first, so that shares of exact multiplications
        differ.
        """
        moving = generator.choice(len(point), moves, replace=False)
        moved = point.astype(float)
        if self._search_tmax:
            moved *= np.exp(generator.normal(0, STRETCH))
        moved[moving] = generator.normal(moved[moving], width * self.unit[moving])
        return self._within(moved)

    def _within(self, point: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(point), self.lower, self.upper).astype(np.int64)
