"""The sections of a run's page, in the order in which a reader wants them.

Each is None if the run lacks what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from approx_env.scoring.distill import INTERVAL, with_interval
from search.results import beside, store
from search.results.page import classes, figures, layers, reading, verdict
from search.results.page.parts import Drawing, Facts, Link, Section, Table, Text
from search.results.page.reading import Run

MEASURES = {
    "return": "return", "drop_points": "drop, search", "validation_drop_points": "drop, validation",
    "kd": "KD", "at": "AT", "mac_zero": "zero, %", "mac_v1": "v1, %", "mac_v2": "v2, %", "mac_exact": "exact, %",
    "relative_energy": "energy",
}  # fmt: skip
FINE = ("return", "kd", "at", "relative_energy")  # with four digits
SHORT = {"drop_points": "drop,\nsearch", "validation_drop_points": "drop,\nvalid.", "mac_zero": "zero",
         "mac_v1": "v1", "mac_v2": "v2", "mac_exact": "exact", "relative_energy": "energy"}  # fmt: skip


def cost(run: Run) -> Section | None:
    """Where the multiplications go."""
    shares = verdict.of_all(run, verdict.measured(run)) if run.best else None
    if shares is None:
        return None
    alt = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    svg = figures.drawn(figures.multiplications, "cost", f"One bar of all multiplications: {alt}", shares, height=1.6)
    words = {"natural": "zero in the exact network, too", "zero": "zero by the codes",
             "shared": "product with v1 or v2, shared", "exact": "exact"}  # fmt: skip
    table = Table("Of all multiplications of the network", ("what", "share"),
                  [(words[kind], f"{share:.2%}") for kind, share in shares.items()], folded=True)  # fmt: skip
    layers = run.about.get("share_of_all_macs")
    told = f" The layers feed {layers:.1%} of them; the rest is exact." if layers else ""
    return Section("cost", "Multiplications", [Drawing(svg, f"All multiplications of the network.{told}", table)])


def search(run: Run) -> Section | None:
    """How the search went on."""
    curves = reading.curves(run)
    if curves.empty:
        return None
    level = run.quintile_return
    levels = {} if level is None else {"quintile": level}
    last = curves.ffill().iloc[-1]
    alt = f"Best return so far against evaluations; at the end {last.min():.4f} to {last.max():.4f}"
    svg = figures.drawn(figures.searches, "search", alt, curves, levels, height=3.6)
    rows = [(str(count), *(_number(value, 4) for value in curves.iloc[count - 1])) for count in _counts(len(curves))]
    heads = ("evaluations", *(f"seed {seed}" for seed in curves))
    caption = f"{run.method}: best return so far on {run.arguments['search_images']} search images."
    return Section("search", "Search", [Drawing(svg, caption, Table("Best return so far", heads, rows, folded=True))])


def _counts(last: int) -> list[int]:
    """Powers of two up to the last."""
    return sorted({*(2**k for k in range(last.bit_length())), last})


def overfitting(run: Run) -> Section | None:
    """The chosen configuration's drop on search, validation and test."""
    if run.best is None:
        return None
    metrics = run.best["metrics"]
    found = [("search", float(run.chosen["drop_points"]), None)]
    found += [(split, metrics[split]["drop_points"], metrics[split].get("drop_error_points"))
              for split in store.SPLITS if split in metrics]  # fmt: skip
    alt = "Drop from the exact teacher: " + ", ".join(f"{split} {drop:.2f} points" for split, drop, _ in found)
    svg = figures.drawn(figures.drops, "drops", alt, found, height=1.6)
    rows = [(split, f"{drop:.2f}", "" if error is None else f"{INTERVAL * error:.2f}",
             f"{found[0][1] - drop:.2f}") for split, drop, error in found]  # fmt: skip
    table = Table("Drop by split", ("images", "drop, points", "95 %, ±", "gap: drop on search minus it"), rows)
    told = ("A gap far below 0 says that the search has learnt its images by heart. The choice was: "
            f"{run.best['selection'].get('rule', 'not told')}.")  # fmt: skip
    return Section("drops", "The same codes on other images", [Drawing(svg, told, None), table])


def front(run: Run) -> Section | None:
    """The front of drop and exact multiplications."""
    points = run.tables.get(store.PARETO)
    if points is None:
        return None
    svg = figures.drawn(figures.front, "front", f"A front of {len(points)} points: drop against exact share", points,
                        height=3.6)  # fmt: skip
    rows = [
        (point["episode_id"], "yes" if point["chosen"] else "", f"{point['validation_mac_exact_all']:.2%}",
         f"{point['validation_drop_points']:.2f}", f"{point['mac_exact_all']:.2%}", f"{point['test_drop_points']:.2f}",
         f"{point['relative_energy']:.3f}")
        for point in points.to_dict("records")
    ]  # fmt: skip
    heads = ("configuration", "chosen", "exact, validation", "drop, validation", "exact, test", "drop, test", "energy")
    table = Table("Points of the front", heads, rows, keys=list(map(str, range(len(rows)))))
    return Section("front", "Front", [Drawing(svg, "No other configuration beats a point in both.", None), table])


def best(run: Run) -> Section | None:
    """The best configurations: a figure, a table that selects in it, and their codes."""
    found = reading.top(run)
    if found.empty:
        return None
    names = [name for name in MEASURES if name in found and found[name].notna().all()]
    values = found[names].mul([100 if name.startswith("mac_") else 1 for name in names])
    ids, chosen = list(found["episode_id"]), run.best and run.best["selection"]["episode_id"]
    rows = [
        (str(place + 1), ids[place], "yes" if ids[place] == chosen else "",
         *(f"{own[name]:.{4 if name in FINE else 2}f}" for name in names))
        for place, own in enumerate(values.to_dict("records"))
    ]  # fmt: skip
    heads = ("rank", "configuration", "chosen", *(MEASURES[name] for name in names))
    keys = [str(place) for place in range(len(found))]
    parts: list[Any] = [Table(f"The best {len(found)} by return", heads, rows, keys=keys, filtered=True)]
    if len(found) > 1:
        alt = f"Parallel coordinates of the best {len(found)} configurations over {len(names)} measures"
        thick = ids.index(chosen) if chosen in ids else None
        ticks = [SHORT.get(name, name) for name in names]
        svg = figures.drawn(figures.parallel, "parallel", alt, values, ticks, thick, width=5.6)
        told = "Each line is a configuration; a thick one with stars is the chosen one. Select rows to see their lines."
        parts.insert(0, Drawing(svg, told, None))
    return Section("best", f"The best {len(found)}", [*parts, _codes(found, run.layers)])


def _codes(found: pd.DataFrame, layers: Sequence[str]) -> Table:
    rows = [
        (row["episode_id"], *(" ".join(str(row[f"{layer}_{code}"]) for code in store.CODE_FIELDS) for layer in layers))
        for row in found.to_dict("records")
    ]
    return Table("Their codes: t1 v1 t2 v2 tmax", ("configuration", *layers), rows, folded=True)


def approximations(run: Run) -> Section | None:
    """Baselines and students beside the configuration."""
    if not run.beside:
        return None
    rows = [beside.cells(name, measured) for name, measured in run.beside]
    told = Text("Simpler approximations of the same layers, and students with weights of their own. A drop comes with "
                "its 95 % interval. Energy is arithmetic only: no memory, no control.")  # fmt: skip
    return Section("beside", "Beside it", [told, Table("Approximations of the same layers", beside.HEADS[1:], rows)])


def adaptation(run: Run) -> Section | None:
    """The student before and after training."""
    if run.student is None:
        return None
    validation, curve = run.student["validation"], run.student.get("curve", ())
    rows = [(name, *_pair(scored), _number(scored["kd"], 4), _pair(run.student["test"])[0]
             if name == run.student["chosen"] else "") for name, scored in validation.items()]  # fmt: skip
    heads = ("student", "drop on validation, points", "energy of all", "KD on validation", "drop on test, points")
    parts: list[Any] = [Table("A student with weights of its own; validation has chosen", heads, rows)]
    if curve:
        levels = {name: validation[name]["drop_points"] for name in validation if name != "trained"}
        alt = f"Drop on validation in training, from {curve[0]['drop_points']:.2f} to {curve[-1]['drop_points']:.2f}"
        svg = figures.drawn(figures.adaptation, "adaptation", alt, curve, levels)
        steps = [(str(point["step"]), f"{point['drop_points']:.2f}", _number(point["kd"], 4)) for point in curve]
        table = Table("Training", ("step", "drop on validation, points", "KD"), steps, folded=True)
        parts.insert(0, Drawing(svg, "The student's training.", table))
    return Section("adaptation", "Adaptation", parts)


def _pair(scored: dict[str, float]) -> tuple[str, str]:
    """Drop with its interval, and energy."""
    return with_interval(scored["drop_points"], scored["drop_error_points"]), f"{scored['relative_energy']:.3f}"


def provenance(run: Run) -> Section:
    """Where the run came from."""
    about, teacher = run.about, run.about["teacher"]
    facts = {
        "command": " ".join(map(str, about.get("command", ()))),
        "commit": about.get("commit"),
        "started": about.get("started"),
        "resumed": ", ".join(str(each.get("time")) for each in about.get("resumed", ())),
        "seeds": ", ".join(map(str, run.arguments["seeds"])),
        "splits": ", ".join(f"{name} {count}" for name, count in about.get("splits", {}).items()),
        "teacher": teacher.get("file"),
        "SHA-256 of its arrays": teacher.get("sha256"),
        "SHA-256 of the images": about.get("images"),
        "energy": ": ".join(about["cost"][name] for name in ("name", "source")) if "cost" in about else None,
        "host": ", ".join(str(about[name]) for name in ("host", "system") if name in about),
        "CPU threads": about.get("cpu_threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
        "python": about.get("python"),
    }
    parts: list[Any] = [Facts([(name, str(fact)) for name, fact in facts.items() if fact])]
    parts += [Link(f"{name}: export for {format}", f"{name}/") for name, format in run.exports.items()]
    return Section("provenance", "How it was made", parts)


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


# What is shown, and what is said of a finished run that has no such thing.
ORDER: tuple[tuple[Callable[[Run], Section | None], str], ...] = (
    (cost, "Shares of all multiplications: the run is from before they were kept."),
    (search, "The search's curve: no configuration is within the budget."),
    (overfitting, "Drops on other images: nothing is chosen yet."),
    (front, "A front: the run searched with one objective (--objective pareto makes one)."),
    (layers.codes, "Layers' codes: no configuration is within the budget."),
    (layers.sensitivity, "What each layer alone costs: the run has no sensitivity.parquet (--sensitivity makes it)."),
    (best, "The best configurations: the run has no top.parquet."),
    (classes.changes, "Classes and images whose prediction changed: the run is from before they were kept."),
    (classes.attention, "Attention maps: the run is from before they were kept, or its layers have no places."),
    (approximations, "Baselines: the run is from before they were kept."),
    (adaptation, "A student with weights of its own: python -m search.finetune makes one."),
    (provenance, ""),
)  # fmt: skip
