"""Tables and curves of searches: best return so far, by evaluations and by layer-forwards, and drops on test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from approx_env import markdown
from search import algorithms

SHOWN = (16, 64, 256, 1024)  # evaluations whose best return a table has, besides the last
REFERENCE = "hill"  # what others are compared with, seed by seed
RESAMPLES, SEED = 2000, 0  # of the bootstrap
COVERED = (2.5, 97.5)  # percentiles of a 95 % interval
MARGIN = 0.1  # of the returns that are drawn, below and above
POINTS = 100  # at most so many of a curve are drawn, evenly on its logarithmic axis


def interval(values: np.ndarray, of: Callable = np.mean) -> tuple[float, float]:
    """A 95 % interval of a statistic over seeds, `(n,)` or `(n, m)`, by the bootstrap's percentiles.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    drawn = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.array([of(values[one], axis=0) for one in drawn]), COVERED, axis=0)
    return low, high


def best_so_far(rows: pd.DataFrame) -> pd.DataFrame:
    """The best return after each evaluation, one column a seed; not a number behind a search's end."""
    return rows.pivot(index="evaluation", columns="seed", values="return").cummax()


def table(rows: pd.DataFrame, choices: pd.DataFrame) -> str:
    """Mean best returns and drops of the last choices by algorithm, best first, and differences from hill climbing.

    Args:
        rows: of one model, teacher and number of images. What is fixed keeps its return to the end; a search that was
            cut off counts as far as it came.
        choices: the same; may be empty.
    """
    last = int(rows["evaluation"].max()) + 1
    counts = [*(count for count in SHOWN if count < last), last]
    curves = {name: best_so_far(part).reindex(range(last)) for name, part in rows.groupby("algorithm")}
    curves |= {name: curves[name].ffill() for name in curves if algorithms.is_fixed(name)}
    heads = ("algorithm", "seeds", *(f"best return at {count}" for count in counts), f"minus {REFERENCE}'s (95 %)",
             "layer-forwards an evaluation", "ms an evaluation", "drop on validation", "on test")  # fmt: skip
    ordered = sorted(curves, key=lambda name: -curves[name].iloc[-1].fillna(-np.inf).mean())
    lines = [
        (name, _seeds(curves[name]), *(_mean(curves[name].iloc[count - 1]) for count in counts),
         _difference(curves, name), *_costs(rows[rows["algorithm"] == name]), *_drops(choices, name))
        for name in ordered
    ]  # fmt: skip
    return markdown.table(heads, lines)


def _seeds(curve: pd.DataFrame) -> str:
    """How many searches came to the end, and of how many."""
    whole = int(curve.iloc[-1].notna().sum())
    return f"{whole}" if whole == curve.shape[1] else f"{whole} of {curve.shape[1]}"


def _mean(values: pd.Series) -> str:
    """Of the seeds that came so far; empty if one is missing, for means of different seeds do not compare."""
    return "" if values.isna().any() else f"{values.mean():.4f}"


def _difference(curves: dict[str, pd.DataFrame], name: str) -> str:
    """What the last best return is above the reference's, of seeds that have come to the end with both."""
    if name == REFERENCE or REFERENCE not in curves:
        return ""
    own, other = curves[name].iloc[-1], curves[REFERENCE].iloc[-1]
    return told(own - other, 4)


def told(differences: pd.Series, digits: int) -> str:
    """The mean of differences, seed by seed, with its 95 % interval; empty if no seed has one."""
    values = differences.dropna().to_numpy()
    if not len(values):
        return ""
    low, high = interval(values)
    spread = f"{low:+.{digits}f} to {high:+.{digits}f}" if len(values) > 1 else "one seed"
    return f"{values.mean():+.{digits}f} ({spread})"


def _costs(rows: pd.DataFrame) -> tuple[str, str]:
    return f"{rows['layer_forwards'].mean():.2f}", f"{1000 * rows['seconds'].median():.0f}"


def _drops(choices: pd.DataFrame, name: str) -> tuple[str, ...]:
    if choices.empty or name not in set(choices["algorithm"]):
        return "", ""
    own = choices[choices["algorithm"] == name]
    latest = own.loc[own.groupby("seed")["evaluations"].idxmax()]
    return tuple(f"{latest[f'{split}_drop_points'].mean():.2f}" for split in ("validation", "test"))


def draw(rows: pd.DataFrame, choices: pd.DataFrame, path: Path) -> None:
    """Writes an SVG: medians over seeds with the interval of each, and drops of choices on test.

    What lies far below the return that the reference begins with is cut off.
    """
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tapsearch"  # the same rows make the same file
    figure, (by_evaluations, by_layers, drops) = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
    names = sorted(rows["algorithm"].unique())
    for place, name in enumerate(names):
        style = {"color": f"C{place % 10}", "linestyle": ("-", "--", ":")[place // 4 % 3]}
        part = rows[rows["algorithm"] == name]
        curve = best_so_far(part).dropna(axis=1)  # searches as long as this algorithm's longest
        forwards = part.pivot(index="evaluation", columns="seed", values="layer_forwards").mean(axis=1).cumsum()
        shown = np.unique(np.geomspace(1, len(curve), POINTS).round().astype(int)) - 1
        curve, forwards = curve.iloc[shown], forwards.iloc[shown]
        middle, (low, high) = curve.median(axis=1), interval(curve.to_numpy().T, np.median)
        for axes, along in ((by_evaluations, curve.index + 1), (by_layers, forwards)):
            axes.plot(along, middle, label=name, marker="o" if len(curve) == 1 else None, **style)
            axes.fill_between(along, low, high, alpha=0.15, color=style["color"], linewidth=0)
        if len(choices) and name in set(choices["algorithm"]):
            _drop_points(drops, choices[choices["algorithm"] == name], name, place / (4 * len(names)), style)
    by_evaluations.set(xscale="log", xlabel="evaluations", ylabel="best return (median of seeds, 95 %)")
    by_layers.set(xscale="log", xlabel="layer-forwards", ylabel="best return")
    drops.set(xscale="log", xlabel="evaluations", ylabel="drop on test of the choice, points (mean, 95 %)")
    if REFERENCE in names:
        begin, top = best_so_far(rows[rows["algorithm"] == REFERENCE]).iloc[0].median(), rows["return"].max()
        for axes in (by_evaluations, by_layers):
            axes.set_ylim(begin - MARGIN * (top - begin), top + MARGIN * (top - begin))
    by_evaluations.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _drop_points(axes, choices: pd.DataFrame, name: str, shift: float, style: dict) -> None:
    """One point a number of evaluations, moved to the right by `shift` of an octave."""
    for count, part in choices.groupby("evaluations"):
        values = part["test_drop_points"].to_numpy()
        low, high = interval(values)
        middle = values.mean()
        bars = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(count * 2**shift, middle, yerr=bars, marker="o", color=style["color"])
