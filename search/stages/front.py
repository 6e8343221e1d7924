"""The front of a run: what nothing beats on validation, in drop and in share of exact multiplications of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from approx_env.int8.energy import Energy
from search.results import selection, store
from search.stages import comparison
from search.stages.comparison import Outcome


def members(scores: Sequence[Outcome]) -> list[int]:
    """Positions of the front among what configurations scored on validation, the lowest drop first."""
    return selection.front([(-score["drop_points"], score["mac_exact_all"]) for score in scores])


def row(found: Mapping[str, Any], validation: Outcome, test: Outcome, energy: Energy, chosen: bool) -> dict[str, Any]:
    """A point of the front as a row of `pareto.parquet`; `found` is the row of its configuration."""
    measured = {"validation_mac_exact_all": float(validation["mac_exact_all"]), "chosen": chosen}
    return dict(found) | comparison.told(validation, test, energy) | measured


def parquet(points: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> bytes:
    """The rows as the bytes of `pareto.parquet`."""
    columns = store.pareto_schema(layers)
    return store.parquet([{name: point[name] for name in columns.names} for point in points], columns)


def show(points: Sequence[Mapping[str, Any]]) -> None:
    """Prints the front."""
    shown = Table(box=box.SIMPLE)
    for head in ("front", "exact of all, validation / test, %", "drop, validation", "drop, test", "energy of all"):
        shown.add_column(head, no_wrap=True)
    for point in points:
        shares = (f"{100 * point[name]:.2f}" for name in ("validation_mac_exact_all", "mac_exact_all"))
        name = f"{point['episode_id']}{' (chosen)' if point['chosen'] else ''}"
        shown.add_row(name, " / ".join(shares), *comparison.drops(point), f"{point['relative_energy']:.3f}")
    Console(width=125, highlight=False).print(shown)
