"""Figures of a page, as SVG that takes its colours from the page: they follow it from light to dark and onto paper.

A figure is 4.7 inches wide, so that its letters can be read on a telephone. What colour tells, a line's dashes, a
marker or a hatch tells, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from approx_env.scoring.distill import INTERVAL

WIDTH = 4.7  # inches of 72 CSS pixels
KINDS = ("zero", "v1", "v2", "exact")
SERIES = 6  # colours that lines have
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"
HATCHES = {"natural": "||", "zero": "", "shared": "//", "v1": "//", "v2": "\\\\", "exact": "xx"}
# Colours that stand for the page's variables in what matplotlib writes; no figure has another one.
NAMES = ("ink", "line", "natural", "zero", "shared", "v1", "v2", "exact", "paper", *(f"s{k}" for k in range(SERIES)))
COLOURS = {name: f"#0000{place + 1:02x}" for place, name in enumerate(NAMES)}
BY_COLOUR = {colour: name for name, colour in COLOURS.items()}
INK, LINE = COLOURS["ink"], COLOURS["line"]
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "tapsearch", "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.4, "hatch.color": INK,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "axes.unicode_minus": False,
    "text.parse_math": False,
}  # fmt: skip
KEY = "key-"  # an artist's name that begins so belongs to a row of a table


def drawn(draw: Callable[..., None], ident: str, alt: str, *given: Any, height: float = 3.0, width: float = WIDTH,
          **more: Any) -> Markup:  # fmt: skip
    """What `draw(axes, ...)` draws, as an SVG element of a page.

    Args:
        ident: of the figure; no other one of the page has it.
        alt: what those hear who do not see it.
        height, width: inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(), *given, **more)
        made = io.StringIO()
        figure.savefig(made, format="svg", metadata={"Date": None})
    return _inline(made.getvalue(), ident, alt)


def _inline(svg: str, ident: str, alt: str) -> Markup:
    """matplotlib's file as an element: no header, no name that another figure has, colours of the page."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    referred = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))

    def tag(found: re.Match) -> str:
        text = re.sub(rf' id="{KEY}(\w+)"', r' data-key="\1"', found[0])
        text = re.sub(r' id="([^"]+)"', lambda own: f' id="{ident}-{own[1]}"' if own[1] in referred else "", text)
        text = re.sub(r'(href="|url\()#', rf"\1#{ident}-", text)
        text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.4g}", text)
        return re.sub(r"#0000[0-9a-f]{2}", lambda colour: f"var(--{BY_COLOUR[colour[0]]})", text)

    svg = re.sub(r"<[^>]+>", tag, svg)
    size = re.search(r'viewBox="[^"]*"', svg)[0]
    inner = svg[svg.index(">") + 1 :].replace("xlink:href", "href")
    return Markup(f'<svg role="img" aria-label="{escape(alt)}" {size}>{inner}')


def style(place: int) -> dict[str, Any]:
    """Colour and dashes of the line number `place`; another one has others, up to 24 of them."""
    return {"color": COLOURS[f"s{place % SERIES}"], "linestyle": DASHES[(place + place // SERIES) % len(DASHES)]}


def searches(axes: Axes, curves: pd.DataFrame, levels: Mapping[str, float]) -> None:
    """Best returns so far: a line a seed, the median and the range of all; `levels` are lines across."""
    for place, (seed, curve) in enumerate(curves.items()):
        _steps(axes, curve.dropna(), label=f"seed {seed}", linewidth=1, **style(place))
    if curves.shape[1] > 1:
        whole = curves.dropna()
        axes.fill_between(whole.index + 1, whole.min(axis=1), whole.max(axis=1), step="post", color=INK, alpha=0.12,
                          linewidth=0, label="range of seeds")  # fmt: skip
        _steps(axes, whole.median(axis=1), label="median of seeds", linewidth=2.2, color=INK)
    _finish_curves(axes, levels)


def comparison(axes: Axes, curves: Mapping[str, pd.DataFrame], levels: Mapping[str, float]) -> None:
    """Medians over seeds of several runs, by name, with their ranges."""
    for place, (name, curve) in enumerate(curves.items()):
        whole, own = curve.dropna(), style(place)
        _steps(axes, whole.median(axis=1), label=name, linewidth=1.6, marker=MARKERS[place % len(MARKERS)],
               markevery=[-1], **own)  # fmt: skip
        if curve.shape[1] > 1:
            axes.fill_between(whole.index + 1, whole.min(axis=1), whole.max(axis=1), step="post",
                              color=own["color"], alpha=0.15, linewidth=0)  # fmt: skip
    _finish_curves(axes, levels)


def _steps(axes: Axes, curve: pd.Series, **style: Any) -> None:
    """A line of the few evaluations at which a curve rises, and of its end."""
    rises = curve[(curve.diff() != 0) | (np.arange(len(curve)) == len(curve) - 1)]
    axes.plot(rises.index + 1, rises, drawstyle="steps-post", **style)


def _finish_curves(axes: Axes, levels: Mapping[str, float]) -> None:
    for place, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (1 + 4 * place, 3)), label=name)
    axes.set(xlabel="evaluations", ylabel="best return so far")
    _legend(axes)


def _legend(axes: Axes, columns: int = 2) -> None:
    axes.figure.legend(loc="outside lower center", ncols=columns)


def multiplications(axes: Axes, shares: Mapping[str, float]) -> None:
    """One bar of all multiplications; `shares` are by a name of a colour and add up to 1."""
    words = {"natural": "zero anyway", "zero": "zero by the codes", "shared": "shared", "exact": "exact"}
    left = 0.0
    for kind, share in shares.items():
        axes.barh(0, share, left=left, color=COLOURS[kind], hatch=HATCHES[kind], edgecolor=INK, linewidth=0.6,
                  label=f"{words[kind]} {share:.1%}")  # fmt: skip
        left += share
    axes.set(xlim=(0, 1), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "25", "50", "75", "100 %"])
    axes.spines["left"].set_visible(False)
    _legend(axes)


def drops(axes: Axes, found: Sequence[tuple[str, float, float | None]]) -> None:
    """Drops by split, with the 95 % interval of those whose standard error is known."""
    for place, (_, drop, error) in enumerate(found):
        axes.errorbar(drop, -place, xerr=None if error is None else INTERVAL * error, color=COLOURS[f"s{place}"],
                      marker=MARKERS[place], markersize=7, capsize=4)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(yticks=[-place for place in range(len(found))], yticklabels=[split for split, *_ in found],
             ylim=(0.5 - len(found), 0.5), xlabel="drop from the exact teacher, points (95 % interval)")  # fmt: skip


def front(axes: Axes, points: pd.DataFrame) -> None:
    """Points of a front: drop against the share of all multiplications that stays exact, on validation and on test."""
    for place, point in enumerate(points.to_dict("records")):
        shares = 100 * point["validation_mac_exact_all"], 100 * point["mac_exact_all"]
        drops = point["validation_drop_points"], point["test_drop_points"]
        axes.plot(shares, drops, color=LINE, linewidth=1, gid=f"{KEY}{place}")
        axes.plot(shares[0], drops[0], "*" if point["chosen"] else "o", color=COLOURS["s0"], gid=f"{KEY}{place}",
                  markersize=12 if point["chosen"] else 6)  # fmt: skip
        axes.plot(shares[1], drops[1], "D", color=COLOURS["s1"], markerfacecolor="none", gid=f"{KEY}{place}")
    axes.plot([], [], "o", color=COLOURS["s0"], label="validation (a star: chosen)")
    axes.plot([], [], "D", color=COLOURS["s1"], markerfacecolor="none", label="the same on test")
    axes.set(xlabel="of all multiplications exact, %", ylabel="drop, points")
    _legend(axes)


def histogram(axes: Axes, counts: np.ndarray, codes: Sequence[int]) -> None:
    """How often each code of a layer came, in four segments, with t1, t2 and tmax as lines and v1 and v2 as marks."""
    t1, v1, t2, v2, tmax = codes
    shares = counts / max(1, counts.sum())
    edges = (0, t1 + 1, t2 + 1, tmax + 1, len(counts))
    for kind, low, high in zip(KINDS, edges, edges[1:], strict=False):
        if low < high:
            axes.stairs(shares[low:high], np.arange(low, high + 1) - 0.5, fill=True, color=COLOURS[kind],
                        hatch=HATCHES[kind], edgecolor=INK, linewidth=0)  # fmt: skip
    lowest = shares[shares > 0].min() if shares.any() else 1e-6
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.yaxis.set_minor_locator(NullLocator())
    highest = max(tmax, np.flatnonzero(counts).max(initial=0))
    axes.set(ylim=(lowest / 2, 2), xlim=(-2, highest + 4), xlabel="code", ylabel="share of codes")
    for name, at, dashes in (("t1", t1, "-"), ("t2", t2, "--"), ("tmax", tmax, "-.")):
        axes.axvline(at + 0.5, color=INK, linewidth=1, linestyle=dashes)
        axes.annotate(name, (at + 0.5, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    for name, at in (("v1", v1), ("v2", v2)):
        axes.plot(at, 0.9, "v", color=INK, markersize=6, transform=axes.get_xaxis_transform())
        axes.annotate(name, (at, 0.86), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8)


def sensitivity(axes: Axes, layers: Sequence[str], alone: Sequence[float], others: Sequence[float]) -> None:
    """What each layer costs: approximated alone, and exact alone."""
    places = -np.arange(len(layers))
    axes.hlines(places, np.minimum(alone, others), np.maximum(alone, others), color=LINE, linewidth=1.5)
    axes.plot(alone, places, "o", color=COLOURS["s0"], label="it alone approximated")
    axes.plot(others, places, "s", color=COLOURS["s1"], markerfacecolor="none", label="it alone exact")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(yticks=places, yticklabels=layers, xlabel="drop on search images, points")
    _legend(axes)


def parallel(axes: Axes, found: pd.DataFrame, heads: Sequence[str], chosen: int | None) -> None:
    """A line for each row over columns, each from its lowest to its highest value.

    Args:
        heads: what the columns are called.
        chosen: position of the row that the run chose, drawn thick.
    """
    low, high = found.min(), found.max()
    scaled = ((found - low) / (high - low).where(high > low, 1)).where(high > low, 0.5, axis=1)
    for place, values in enumerate(scaled.to_numpy()):
        own = {"color": COLOURS["s0"], "linewidth": 0.8, "alpha": 0.65, "marker": "o", "markersize": 2.5}
        if place == chosen:
            own = {"color": COLOURS["s1"], "linewidth": 2.6, "marker": "*", "markersize": 9, "zorder": 3}
        axes.plot(range(len(values)), values, gid=f"{KEY}{place}", **own)
    axes.set(xticks=range(len(heads)), xticklabels=heads, yticks=[], xlim=(-0.4, len(heads) - 0.6), ylim=(-0.12, 1.12))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    for place, name in enumerate(found):
        axes.annotate(f"{high[name]:.4g}", (place, 1.04), ha="center", va="bottom", fontsize=7)
        axes.annotate(f"{low[name]:.4g}", (place, -0.04), ha="center", va="top", fontsize=7)


def classes(axes: Axes, names: Sequence[str], changes: Sequence[float]) -> None:
    """Points that classes gain (to the right, hatched) or lose."""
    places = -np.arange(len(names))
    for place, change in zip(places, changes, strict=True):
        kind = "v1" if change > 0 else "exact"
        axes.barh(place, change, 0.7, color=COLOURS[kind], hatch=HATCHES["v1"] if change > 0 else "", edgecolor=INK,
                  linewidth=0.6)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(yticks=places, yticklabels=[_short(name) for name in names], xlabel="change of accuracy on test, points")


def adaptation(axes: Axes, curve: Sequence[Mapping[str, float]], levels: Mapping[str, float]) -> None:
    """The drop on validation while a student was trained; `levels` are drops without training."""
    axes.plot([point["step"] for point in curve], [point["drop_points"] for point in curve], "o-", color=COLOURS["s0"],
              label="in training")  # fmt: skip
    for place, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color=INK, linewidth=1, linestyle=DASHES[place + 1], label=name)
    axes.set(xlabel="steps", ylabel="drop on validation, points")
    _legend(axes, 3)


def _short(name: str, letters: int = 24) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
