"""What a run has found, in a sentence and in shares of all multiplications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from approx_env.scoring.baselines import NATURAL
from approx_env.scoring.distill import INTERVAL
from search.results.page.reading import Run


def sentence(run: Run) -> str:
    """The verdict on a run; how far it is, if it has not chosen yet."""
    if run.best is None:
        return _so_far(run)
    metrics = run.best["metrics"]
    test = metrics.get("test", {})
    told = (f"Teacher {metrics['acc_teacher']:.2%}, with these codes {metrics['acc_student']:.2%} on test: "
            f"{_drop(metrics['acc_drop'], test.get('drop_error_points'))}.")  # fmt: skip
    if run.student:
        student = run.student["test"]
        told += (f" A student with weights of its own has {student['accuracy']:.2%}: "
                 f"{_drop(student['drop_points'], student['drop_error_points'])}.")  # fmt: skip
    return f"{told} {_saved(run)}"


def _so_far(run: Run) -> str:
    if run.scored.empty:
        return "No configuration has been scored yet."
    planned = run.arguments["episodes"] * len(run.arguments["seeds"])
    told = f"Under way: {len(run.searched)} of {planned} configurations scored."
    if run.searched.empty:
        return told
    best = run.searched.loc[run.searched["return"].idxmax()]
    return f"{told} Best return so far {best['return']:.4f}, with a drop of {best['drop_points']:.2f} points on search."


def _drop(points: float, error: float | None) -> str:
    if error is None:
        return f"a drop of {points:.2f} points"
    half = INTERVAL * error
    return f"a drop of {points:.2f} points (95\u00a0% interval {points - half:.2f} to {points + half:.2f})"


def _saved(run: Run) -> str:
    cost = measured(run)
    shares = of_all(run, cost)
    if shares is None:
        row = run.chosen
        return (f"Of the layers' multiplications {row['mac_zero']:.1%} are zero, {row['mac_v1'] + row['mac_v2']:.1%} "
                f"shared and {row['mac_exact']:.1%} exact.")  # fmt: skip
    zero = shares["zero"] + shares.get("natural", 0.0)
    anyway = f" ({shares['natural']:.1%} anyway)" if "natural" in shares else ""
    told = (f"Of all multiplications {zero:.1%} are zero{anyway}, {shares['shared']:.1%} shared and "
            f"{shares['exact']:.1%} exact")  # fmt: skip
    return f"{told}; relative energy {cost['relative_energy']:.3f} by {cost['table']}." if cost else f"{told}."


def measured(run: Run) -> Mapping[str, Any] | None:
    """Shares and energies of what the run has found, on test: of its student, if it has one. Older runs have none."""
    cost = run.best["metrics"].get("cost")
    return cost | run.student["test"] if cost and run.student else cost


def of_all(run: Run, cost: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Shares of all multiplications that add up to 1: `natural` (zero anyway), `zero`, `shared`, `exact`.

    `cost` is what was measured on test; without it they are those on search images.

    A run that does not know the exact network's zeros has no `natural`; one that does not know what its layers feed
    has no shares.
    """
    if cost and "mac_zero_all" in cost:
        zero, shared, exact = (cost[f"mac_{kind}_all"] for kind in ("zero", "shared", "exact"))
    else:
        covered = run.about.get("share_of_all_macs", run.best["metrics"].get("share_of_all_macs"))
        if covered is None:
            return None
        row = run.chosen
        zero, shared = row["mac_zero"] * covered, (row["mac_v1"] + row["mac_v2"]) * covered
        exact = 1 - zero - shared
    natural = next((rows[0]["mac_zero_all"] for name, rows in run.beside if name == NATURAL), None)
    if natural is None:
        return {"zero": zero, "shared": shared, "exact": exact}
    natural = min(natural, zero)
    return {"natural": natural, "zero": zero - natural, "shared": shared, "exact": exact}
