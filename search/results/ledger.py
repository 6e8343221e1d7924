"""What a run has so far: which rows are written and which wait, how many there are, and which are the best.

Plain data: no files, no clock, no Ray. `sink` is the actor around it.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search import objectives
from search.results import selection, store

Row = dict[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """What the rows of a run have in common."""

    run: str
    model: str
    dataset: str
    layers: tuple[str, ...]
    tmax: tuple[int, ...]
    search_images: int  # of the first rung; a row of a higher one says its own
    front: bool = False  # whether the best are a front of return and share of exact multiplications
    budget_exact: float | None = None  # highest share of exact multiplications that the best may have


@dataclass(frozen=True)
class Searched:
    """How far one search of a run is."""

    finished: int = 0  # its configurations that are written or about to be
    best_return: float | None = None  # of the written ones that keep the budget
    best_drop_points: float | None = None  # of that configuration, on search images


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    configurations: int  # that searches proposed and that are written
    trials: dict[str, int]  # the same by trial
    images: int  # of the highest rung that a row has come from; what follows is about this rung alone
    finished: int  # written configurations, and those about to be
    best_return: float | None  # of the written ones that keep the budget
    rate: float  # configurations a second, since the first one; 0 until there are two
    waiting: int  # configurations that are not written yet
    trouble: str | None  # why the last attempt to write or to read failed
    lost: bool  # whether another driver has taken the run over, so that this one never writes again
    layer_forwards: int = 0  # that the written configurations took; see results/README.md
    searches: dict[str, Searched] = field(default_factory=dict)  # of the highest rung, by trial


@dataclass
class Rung:
    """How far the highest rung is."""

    images: int
    finished: int = 0  # rows of it, written or not
    arrived: int = 0  # those of them that this process was sent
    first: float = 0.0  # time of the first one that arrived, seconds
    last: float = 0.0  # and of the last one
    searches: dict[str, Searched] = field(default_factory=dict)  # by trial

    @property
    def rate(self) -> float:
        """Configurations a second; 0 until two have arrived."""
        return (self.arrived - 1) / (self.last - self.first) if self.arrived > 1 and self.last > self.first else 0.0


class Ledger:
    """Keeps the books of a run.

    A row is taken by `receive`, waits in `waiting`, and is `settle`d when it is on disk.

    Args:
        info: what the rows share.
        count: how many of the best configurations to keep.
    """

    def __init__(self, info: RunInfo, count: int):
        self.info = info
        self.waiting: dict[str, Row] = {}  # by `episode_id`
        # Written rows of the highest rung that has any, distinct, best first. None exceeds the budget.
        self.top: list[Row] = []
        self._kept: list[Row] = []  # what `top` is taken from: the same, or the whole front
        self._highest = 0  # images of that rung
        self._count = count
        self._written: set[str] = set()
        self._trials: Counter[str] = Counter()
        self._forwards = 0
        self._rung = Rung(info.search_images)

    def receive(self, message: Mapping[str, Any], now: float) -> None:
        """Takes what a recorder sends of one finished configuration, unless its row is known.

        Args:
            now: seconds on a clock that never runs back.

        Raises:
            KeyError: the message lacks something; the ledger stays as it was.
        """
        name = message["episode_id"]
        if name in self._written or name in self.waiting:
            return
        row = complete(self.info, message)
        self.waiting[name] = row
        self._enter(row)
        self._rung.arrived += 1
        self._rung.first = self._rung.first if self._rung.arrived > 1 else now
        self._rung.last = now

    def restore(self, rows: Sequence[Row]) -> None:
        """Takes up rows that an earlier process of this run has written."""
        for row in rows:
            self._enter(row)
        self.settle(rows)

    def settle(self, rows: Iterable[Row]) -> None:
        """Notes that these rows are on disk."""
        rows = list(rows)
        for row in rows:
            self.waiting.pop(row["episode_id"], None)
            self._written.add(row["episode_id"])
            proposed = row["search_images"] == self.info.search_images
            self._trials[row["trial"]] += proposed
            self._forwards += proposed * row.get("layer_forwards", len(self.info.layers))
            self._compare(row)
        self._highest = max([self._highest, *(row["search_images"] for row in rows)])
        candidates = [*self._kept, *(row for row in rows if self._keeps_budget(row))]
        candidates = [row for row in candidates if row["search_images"] == self._highest]
        if self.info.front:
            self._kept = selection.best_front(candidates, self._codes)
            self.top = [self._kept[k] for k in selection.spread([*map(selection.point, self._kept)], self._count)]
        else:
            self._kept = self.top = selection.best(candidates, self._count, self._codes)

    def written(self, names: Iterable[str]) -> set[str]:
        """Which of these `episode_id`s have a row on disk."""
        return self._written.intersection(names)

    def promoted(self, rows: Iterable[Row], images: int, more: int) -> tuple[list[Row], int]:
        """Those of a run's rows whose configurations go on from `images` images to `more`, and among how many.

        A configuration that exceeds the budget does not count.
        """
        scored = [row for row in rows if row["search_images"] == images and self._keeps_budget(row)]
        return selection.promoted(scored, images, more, self._count, self._codes, self.info.front)

    def progress(self, trouble: str | None = None, lost: bool = False) -> Progress:
        """How far the run is; `trouble` and `lost` are passed on."""
        rung, trials = self._rung, dict(self._trials)
        best = self.top[0] if self.top else {}
        best_return = best["return"] if best.get("search_images") == rung.images else None
        return Progress(
            sum(trials.values()), trials, rung.images, rung.finished, best_return, rung.rate, len(self.waiting),
            trouble, lost, self._forwards, dict(rung.searches),
        )  # fmt: skip

    def _enter(self, row: Row) -> None:
        """Counts a row in that is written, or about to be."""
        if row["search_images"] > self._rung.images:
            self._rung = Rung(row["search_images"])
        if row["search_images"] == self._rung.images:
            self._rung.finished += 1
            known = self._rung.searches.get(row["trial"], Searched())
            self._rung.searches[row["trial"]] = replace(known, finished=known.finished + 1)

    def _compare(self, row: Row) -> None:
        """Notes a written row that is the best of its search so far."""
        known = self._rung.searches.get(row["trial"], Searched())
        if row["search_images"] != self._rung.images or not self._keeps_budget(row):
            return
        if known.best_return is None or row["return"] > known.best_return:
            self._rung.searches[row["trial"]] = replace(
                known, best_return=row["return"], best_drop_points=row["drop_points"]
            )

    def _keeps_budget(self, row: Row) -> bool:
        return not objectives.excess(row, self.info.budget_exact)

    def _codes(self, row: Row) -> tuple[tuple[int, ...], ...]:
        return store.codes_of(row, self.info.layers)


def complete(info: RunInfo, message: Mapping[str, Any]) -> Row:
    """A row with all its columns, from what a recorder sends."""
    said = dict(message)
    codes, outcome = said.pop("codes"), said.pop("outcome")
    said["time"] = datetime.datetime.fromtimestamp(said["time"] / 1000, datetime.UTC)
    return {
        "schema_version": store.SCHEMA_VERSION,
        "run": info.run,
        "model": info.model,
        "dataset": info.dataset,
        "search_images": info.search_images,
        "layer_forwards": len(info.layers),
        **said,
        **store.configuration_columns(info.layers, codes, info.tmax),
        **store.score_columns(info.layers, outcome),
    }
