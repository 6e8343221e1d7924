"""Search algorithms: each is a module of this folder, which is found by its file's name.

A module has

- `Options`, a frozen dataclass whose fields all have defaults. A field with the name of a command-line setting gets
  that setting's value;
- `Search(calibration, seed, options)`, which proposes configurations as `AskTell` says. `search.stages.trainable`
  scores them, writes the rows, and resumes. A configuration has as many codes a layer as `calibration.quintile`: a
  fifth is the layer's own tmax;
- `start(problem, images)`, if it begins with a configuration that follows from the problem and from calibration images
  alone. The driver computes it once, and every search gets it as `options.start`;
- `FIXED = True`, if it proposes one configuration, whatever the seed;
- `FRONT = True`, if it makes something of scores with two objectives (`--objective pareto`).

An algorithm that cannot be driven so has `trial(calibration, options, **where)` in place of `Search`: a Tune trainable
of its own and the trainable's configuration (`ppo`).

    search = algorithms.find("hill").Search(calibration, seed=0)
    configurations = search.ask(8)
    search.tell(configurations, [Score((evaluate(configuration),)) for configuration in configurations])
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any, Protocol

from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search.objectives import Score


class AskTell(Protocol):
    """Proposes configurations, and learns from their scores.

    The k-th configuration depends on the seed and on the scores of configurations before it alone. It does not depend
    on how many are asked for or told at a time. So a search gives the same rows with any number of runners.
    """

    def ask(self, count: int) -> list[Configuration]:
        """The next `count` configurations; fewer, perhaps none, if later ones depend on scores not yet told."""

    def tell(self, configurations: Sequence[Configuration], scores: Sequence[Score]) -> None:
        """Takes the scores of configurations, in the order in which these were asked for."""

    def state(self) -> dict[str, Any]:
        """All that decides how the search goes on, as JSON takes it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state()` of a search over the same calibration."""


def names() -> tuple[str, ...]:
    """Names of the algorithms that this folder holds, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


NAMES = names()
AUTO = "auto"  # the name that stands for what `chosen` says


def find(name: str) -> ModuleType:
    """The module of an algorithm, one of `NAMES`."""
    return importlib.import_module(f"{__name__}.{name}")


def chosen(objective: str, search_tmax: bool) -> str:
    """The algorithm that did best by `python -m benchmarks search` for what is asked.

    After 256 configurations none is above CMA-ES by more than chance, and on AlexNet all are below. For fronts, and
    where tmax is searched, hill climbing has moves that others lack.

    >>> [chosen("return", False), chosen("kd", True), chosen("pareto", False)]
    ['cma', 'hill', 'hill']
    """
    return "hill" if search_tmax or objective == "pareto" else "cma"


def is_fixed(name: str) -> bool:
    """Whether an algorithm proposes one configuration, whatever the seed."""
    return hasattr(find(name), "FIXED")


def options(algorithm: ModuleType, settings: object) -> Any:
    """An algorithm's options, with the values of those settings that bear the same names."""
    names = [field.name for field in fields(algorithm.Options) if hasattr(settings, field.name)]
    return algorithm.Options(**{name: getattr(settings, name) for name in names})


def generation(algorithm: ModuleType, calibration: Calibration, options: Any) -> int | None:
    """How many configurations an algorithm has scored before it learns; None: any number."""
    if hasattr(algorithm, "trial"):
        return options.iteration_episodes
    return getattr(algorithm.Search(calibration, 0, options), "size", None)
