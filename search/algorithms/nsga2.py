"""NSGA-II: a population whose fronts are sorted, for two objectives at once; Optuna's sampler.

With one objective it is a genetic algorithm with uniform crossover. A number mutates nearby, as in Deb's own program;
Optuna's default is a uniform draw.

Source: Deb et al., IEEE Transactions on Evolutionary Computation 6(2), 2002.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import optuna

from approx_env.scoring.calibration import Calibration
from search.studies import Study

FRONT = True


@dataclass(frozen=True)
class Options:
    """The population."""

    population: int = 16
    width: float = 0.06  # standard deviation of the first one around quintile, as a share of a layer's tmax


class Search(Study):
    """Crosses and mutates the best of a population."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        size = options.population
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            mutation = optuna.samplers.nsgaii.PolynomialMutation()
        sampler = optuna.samplers.NSGAIISampler(population_size=size, mutation=mutation, seed=seed)
        super().__init__(calibration, seed, options, sampler, size, size, options.width)
