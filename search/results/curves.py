"""How the searches of a run went, as curves; and these in TensorBoard's format, written by tensorboardX.

A search has one curve of each score over its episodes. Rows of a higher rung are curves of their own: returns on
different numbers of images do not compare.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from approx_env.errors import InputError
from approx_env.export.bundle import whole
from search import objectives
from search.results import summary
from search.results.query import DIRECTIONS, Row, Rows

BEST_RETURN = "best_return"  # of the episodes so far, of those that keep the budget


@dataclass(frozen=True)
class Point:
    """What a configuration scored."""

    episode: int
    seconds: float  # since 1970, when it was scored
    scores: dict[str, float]  # by column, and `BEST_RETURN`


def curves(rows: Rows, first_images: int, budget: float | None) -> Iterator[tuple[str, list[Point]]]:
    """Each search of a run and its points, in the order of episodes; a rung above the first as `SEARCH@IMAGES`.

    Args:
        first_images: of the first rung.
        budget: highest share of all multiplications that may stay exact; None: any.
    """
    scores = [name for name in DIRECTIONS if name in rows.columns]
    ordered = rows.each(("trial", "search_images", "episode", "time", *scores), "search_images, seed, trial, episode")
    for (trial, images), found in groupby(ordered, lambda row: (row["trial"], row["search_images"])):
        yield trial if images == first_images else f"{trial}@{images}", list(_points(found, scores, budget))


def _points(rows: Iterator[Row], scores: Sequence[str], budget: float | None) -> Iterator[Point]:
    best = None
    for row in rows:
        told = {name: row[name] for name in scores if row[name] is not None}
        if not objectives.excess(row, budget):
            best = row["return"] if best is None else max(best, row["return"])
        yield Point(row["episode"], row["time"].timestamp(), told if best is None else told | {BEST_RETURN: best})


def of_run(place: str) -> tuple[dict[str, Any], Iterator[tuple[str, list[Point]]]]:
    """A run's run.json, and its curves.

    Raises:
        InputError: there is no run, it is damaged, or it has no rows yet.
    """
    folder, about, rows = summary.read(place)
    if not rows.columns:
        raise InputError(f"{folder} has no rows yet: export it when the search has scored something")
    arguments = about["arguments"]
    return about, curves(rows, arguments["search_images"], arguments.get("budget_exact"))


def to_tensorboard(place: str, output: str) -> int:
    """Writes a folder for TensorBoard with one folder for each curve; returns how many points there are.

    Raises:
        InputError: the run cannot be read, or the folder is there or cannot be written.
    """
    target = Path(os.path.abspath(output))
    if os.path.lexists(target):
        raise InputError(f"--output {output} is there: choose another folder, or remove it")
    _, found = of_run(place)
    count = 0
    with whole(target, force=False) as folder:
        for name, points in found:
            with closing(SummaryWriter(str(folder / name))) as writer:
                for point in points:
                    for score, value in point.scores.items():
                        writer.add_scalar(score, value, point.episode, point.seconds)
            count += len(points)
    return count
