"""The tree-structured Parzen estimator: where good configurations are dense and the others are not; Optuna's sampler.

Source: Bergstra et al., NeurIPS 2011; Watanabe, arXiv:2304.11127 (the multivariate one, as Optuna has it).
"""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from approx_env.scoring.calibration import Calibration
from search.studies import Study


@dataclass(frozen=True)
class Options:
    """How the search begins, and how many configurations go between two lessons."""

    generation: int = 8  # configurations that are proposed from the same scores
    start: int = 16  # configurations near quintile that come first
    width: float = 0.06  # their standard deviation, as a share of a layer's tmax


class Search(Study):
    """Proposes what the estimator finds most promising."""

    def __init__(self, calibration: Calibration, seed: int, options: Options = Options()):
        sampler = optuna.samplers.TPESampler(n_startup_trials=options.start, seed=seed)
        super().__init__(calibration, seed, options, sampler, options.generation, options.start, options.width)
