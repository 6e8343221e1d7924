"""What a page says of several runs: a table of verdicts, and the curves of those that compare."""

from __future__ import annotations

from collections.abc import Sequence

from approx_env.scoring.distill import with_interval
from search.results.page import figures, reading, verdict
from search.results.page.parts import Drawing, Section, Table, Text
from search.results.page.reading import Run

HEADS = (
    "run", "network", "search", "configurations", "teacher on test", "these codes on test", "drop on test, points",
    "drop on validation, points", "zero, of all", "of it anyway", "shared, of all", "exact, of all", "energy of all",
)  # fmt: skip


def sentence(runs: Sequence[Run]) -> str:
    """How many have chosen, and which one lost least, if they began with the same."""
    ended = [run for run in runs if run.best is not None]
    told = f"{len(ended)} of {len(runs)} runs have chosen."
    if not ended or len({run.subject for run in ended}) > 1:
        return told
    least = min(ended, key=lambda run: run.best["metrics"]["acc_drop"])
    return f"{told} {least.name} loses least on test: {least.best['metrics']['acc_drop']:.2f} points."


def sections(runs: Sequence[Run]) -> list[Section]:
    """The sections of the page, in order."""
    table = Table("A run a line", HEADS, [_row(run) for run in runs], filtered=True)
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.problem, []).append(run)
    drawn = [_curves(group, place) for place, group in enumerate(groups.values())]
    note = Text("Returns compare where network, teacher, images and objective are the same: each such group has a "
                "figure of its own.")  # fmt: skip
    parts = [*([note] if len(groups) > 1 else []), *(part for part in drawn if part)]
    return [Section("verdicts", "Verdicts", [table]), *([Section("search", "Searches", parts)] if parts else [])]


def _row(run: Run) -> tuple[str, ...]:
    first = run.name, run.sites, run.method, str(len(run.searched))
    if run.best is None:
        return *first, *[""] * (len(HEADS) - len(first))
    metrics = run.best["metrics"]
    cost, test = metrics.get("cost"), metrics.get("test", {})
    shares = verdict.of_all(run, cost) or {}
    drop, error = metrics["acc_drop"], test.get("drop_error_points")
    zero = shares.get("natural", 0.0) + shares["zero"] if shares else None
    told = (zero, shares.get("natural"), shares.get("shared"), shares.get("exact"))
    return (
        *first,
        f"{metrics['acc_teacher']:.2%}",
        f"{metrics['acc_student']:.2%}",
        f"{drop:.2f}" if error is None else with_interval(drop, error),
        f"{metrics['validation']['drop_points']:.2f}",
        *("" if share is None else f"{share:.1%}" for share in told),
        f"{cost['relative_energy']:.3f}" if cost else "",
    )


def _curves(runs: Sequence[Run], place: int) -> Drawing | None:
    """Curves of runs that compare; what is fixed, as quintile, is a line across."""
    curves = {run.name: reading.curves(run) for run in runs}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    levels = {name: float(curve.max(axis=None)) for name, curve in curves.items() if len(curve) == 1}
    moving = {name: curve for name, curve in curves.items() if name not in levels}
    tried = [run.quintile_return for run in runs if run.quintile_return is not None]
    if tried and not levels:
        levels = {"quintile": tried[0]}
    ends = {name: float(curve.max().median()) for name, curve in curves.items()}
    alt = "Best return so far; median of seeds at the end: " + ", ".join(f"{n} {v:.4f}" for n, v in ends.items())
    svg = figures.drawn(figures.comparison, f"curves{place}", alt, moving, levels, height=3.6)
    rows = [(name, str(curve.shape[1]), str(len(curve)), f"{ends[name]:.4f}", f"{curve.max().min():.4f}")
            for name, curve in curves.items()]  # fmt: skip
    heads = ("run", "seeds", "evaluations", "best return, median of seeds", "lowest")
    told = f"{runs[0].sites}, {runs[0].arguments['search_images']} search images: median of seeds, and their range."
    return Drawing(svg, told, Table("Best return at the end", heads, rows, folded=True))
