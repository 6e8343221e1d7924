"""The algorithm that does best by `python -m benchmarks search` for what is asked; the run says which.

Coordinate search goes furthest at few configurations, and each of them takes it a fraction of a pass. CMA-ES goes on
where codes that change alone bring nothing more. Where tmax is searched, and for fronts, hill climbing has moves that
others lack.
"""

from __future__ import annotations

from dataclasses import dataclass

from approx_env.scoring.calibration import Calibration
from search import algorithms

FRONT = True
FEW = 512  # configurations of a search


@dataclass(frozen=True)
class Options:
    """What is asked, as the command line says it."""

    objective: str = "return"
    search_tmax: bool = False
    episodes: int | None = None  # None: the usual number, which is few


def chosen(options: Options) -> str:
    """The algorithm's name.

    >>> [chosen(Options()), chosen(Options(episodes=4096)), chosen(Options("pareto"))]
    ['coordinate', 'cma', 'hill']
    """
    if options.search_tmax or options.objective == "pareto":
        return "hill"
    return "coordinate" if (options.episodes or 0) <= FEW else "cma"


def Search(calibration: Calibration, seed: int, options: Options = Options()) -> algorithms.AskTell:
    """The search of the chosen algorithm, with its own options."""
    return algorithms.find(chosen(options)).Search(calibration, seed)
