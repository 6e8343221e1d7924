"""Baselines beside the chosen configuration: the same layers, the same images, simpler approximations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from approx_env.env import measured
from approx_env.int8 import cost
from approx_env.int8.energy import SCOPE, Energy
from approx_env.scoring import baselines
from approx_env.scoring.baselines import Baseline
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.distill import with_interval
from approx_env.scoring.evaluator import Evaluator
from search.results import store
from search.results.store import SPLITS

if TYPE_CHECKING:  # loading Ray takes seconds, and who asks for costs alone needs none
    from search.workers.runners import Runners

Outcome = Mapping[str, Any]  # of `env.measured`


def find(
    runners: Runners, calibration: Calibration, chosen: Configuration, outcome: Outcome
) -> list[tuple[Baseline, Outcome]]:
    """The baselines, with what they score on the runners' images, which must be those of validation.

    Args:
        chosen: the configuration that they are compared with.
        outcome: what it scores on the same images.
    """
    fixed = baselines.fixed(calibration, [codes[0] for codes in chosen])
    scored = list(zip(fixed, runners.score([each.tables for each in fixed]), strict=True))
    tried: dict[tuple[int, ...], Outcome] = {}

    def exact(baseline: Baseline) -> float:
        (tried[baseline.limits],) = runners.score([baseline.tables])
        return tried[baseline.limits]["shares"][3]

    equal = baselines.threshold_at_share(calibration, outcome["shares"][3], exact)
    return [*scored[:2], (equal, tried[equal.limits]), *scored[2:]]


def rows(
    found: Sequence[tuple[Baseline, Outcome]],
    chosen: tuple[Sequence[int], Outcome, Outcome],
    test: Evaluator,
    energy: Energy,
) -> list[dict[str, Any]]:
    """What is told of the chosen configuration, which comes first, and of each baseline. Reads test for each.

    Args:
        chosen: tmax of each layer, and what the configuration scored on validation and on test.
    """
    made = [_row(store.CHOSEN, *chosen, energy)]
    for baseline, validation in found:
        made.append(_row(baseline.name, baseline.limits, validation, measured(test.evaluate(baseline.tables)), energy))
    return made


def _row(name: str, limits: Sequence[int], validation: Outcome, test: Outcome, energy: Energy) -> dict[str, Any]:
    return {"baseline": name, "limits": tuple(limits)} | told(validation, test, energy)


def told(validation: Outcome, test: Outcome, energy: Energy) -> dict[str, Any]:
    """What an approximation scored, as columns; shares and energies are those of the test images."""
    row = {}
    for split, outcome in zip(SPLITS, (validation, test), strict=True):
        row |= {f"{split}_{key}": float(outcome[key]) for key in store.MEASURES}
    return row | costs(test) | {"energy_table": energy.name}


def costs(outcome: Outcome) -> dict[str, float]:
    """Shares of multiplications, of the layers' and of all, and relative energies."""
    made = {}
    for end, shares in (("", outcome["shares"]), ("_all", cost.of_all(outcome["shares"], outcome["covered"]))):
        zero, v1, v2, exact = map(float, shares)
        made |= {f"mac_zero{end}": zero, f"mac_shared{end}": v1 + v2, f"mac_exact{end}": exact}
    return made | {name: float(outcome[name]) for name in ("relative_energy_sites", "relative_energy")}


def measures(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says in `best.json`: all but the limits and the table's name, which stands there once."""
    return {name: value for name, value in row.items() if name not in ("limits", "energy_table")}


def parquet(compared: Sequence[Mapping[str, Any]], run: str, model: str, dataset: str, layers: Sequence[str]) -> bytes:
    """The rows as the bytes of `baselines.parquet`."""
    common = {"schema_version": store.SCHEMA_VERSION, "run": run, "model": model, "dataset": dataset}
    limits = ({f"{layer}_limit": limit for layer, limit in zip(layers, row["limits"], strict=True)} for row in compared)
    made = [common | dict(row) | each for row, each in zip(compared, limits, strict=True)]
    return store.parquet(made, store.baselines_schema(layers))


def drops(row: Mapping[str, Any]) -> list[str]:
    """The drops on validation and on test, with a 95 % interval."""
    return [with_interval(row[f"{split}_drop_points"], row[f"{split}_drop_error_points"]) for split in SPLITS]


def show(compared: Sequence[Mapping[str, Any]], energy: Energy) -> None:
    """Prints the rows; shares are of the test images."""
    shown = Table(box=box.SIMPLE)
    for head in ("zero / shared / exact, %", "drop, validation", "drop, test", "of the layers'", "of all", "energy"):
        shown.add_column(head, no_wrap=True)
    for row in compared:
        shares = (" / ".join(f"{100 * row[f'mac_{kind}{end}']:.1f}" for kind in ("zero", "shared", "exact"))
                  for end in ("", "_all"))  # fmt: skip
        energies = f"{row['relative_energy_sites']:.3f} / {row['relative_energy']:.3f}"
        shown.add_row(row["baseline"], *drops(row), *shares, energies)
    Console(width=125, highlight=False).print(shown)
    print(
        "drop: points, with a 95 % interval of the difference on the same images\n"
        "energy: of the layers' multiplications / of all, over the exact network's on hardware that skips no zeros,\n"
        f"by {energy.name} ({SCOPE})\n"
        "uniform activations leave no product exact: each reads one of 3, 7 or 15 values (of TAP: 2), and\n"
        "counts as shared"
    )
