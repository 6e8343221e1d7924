"""The actor that every finished configuration is sent to: one writer for a run, which also counts and ranks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from approx_env.evaluator import Problem
from search import selection, store

NAMESPACE = "tapsearch"
FLUSH_SECONDS = 10.0
RETRY_SECONDS = 0.02


@dataclass(frozen=True)
class RunInfo:
    """What the rows of a run have in common."""

    run: str
    model: str
    dataset: str
    layers: tuple[str, ...]
    tmax: tuple[int, ...]
    search_images: int  # of the first rung; a row of a higher one says its own


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    configurations: int  # that searches proposed and that are written
    trials: dict[str, int]  # the same by trial
    images: int  # of the highest rung that a row has come from; what follows is about this rung alone
    finished: int  # written configurations, and those about to be
    best_return: float | None  # of the written ones
    rate: float  # configurations a second, since the first one; 0 until there are two


class _Sink:
    """Writes rows, each once by its `episode_id`, and keeps the best of the highest rung.

    `add` answers when the row is on disk; a caller that waits for the answer loses nothing when this actor dies.
    What cannot be written goes on waiting for the next attempt.

    Args:
        folder: the run's folder.
        info: what rows share.
        problem: where the search problem lies in Ray's object store, from `share`, for env runners to fetch.
        top: how many configurations to keep.
    """

    def __init__(self, folder: str, info: RunInfo, problem: bytes, top: int):
        self._folder, self._info, self._problem, self._count = Path(folder), info, problem, top
        self._ids: set[str] = set()  # of written rows
        self._trials: Counter[str] = Counter()
        self._top: list[dict[str, Any]] = []
        self._waiting: dict[str, dict[str, Any]] = {}  # rows by their ids
        self._images = info.search_images  # of the highest rung so far; the next three are about it
        self._finished = 0
        self._arrivals: list[float] = []  # times of the first configuration and of the last
        self._arrived = 0
        rows = list(store.read_rows(self._folder))
        for row in rows:
            self._count_in(row)
        self._index(rows)
        loop = asyncio.get_event_loop()
        self._next_part = loop.create_future()  # done when what waits is on disk
        self._task = loop.create_task(self._flush_regularly())

    async def problem(self) -> bytes:
        """Where the search problem lies."""
        return self._problem

    async def add(self, row: dict[str, Any]) -> None:
        """Takes one finished configuration and returns when it is written.

        Raises:
            Exception: why it could not be written; it goes on waiting.
        """
        name = row["episode_id"]
        if name in self._ids:
            return
        if name not in self._waiting:
            self._waiting[name] = self._complete(row)
            self._count_in(self._waiting[name])
            self._arrivals[1:] = [time.monotonic()]
            self._arrived += 1
        await asyncio.shield(self._next_part)  # others wait for it, too

    async def flush(self) -> None:
        """Writes what is waiting, now.

        Raises:
            Exception: why it could not be written; it goes on waiting.
        """
        if not self._waiting:
            return
        rows = list(self._waiting.values())
        part, self._next_part = self._next_part, asyncio.get_running_loop().create_future()
        try:
            store.write_part(self._folder, rows, self._info.layers)
        except Exception as error:
            part.set_exception(error)
            part.exception()  # asyncio complains of errors that nobody has looked at, and perhaps nobody waits
            raise
        for row in rows:
            del self._waiting[row["episode_id"]]
        self._index(rows)
        part.set_result(None)
        store.write_table(self._folder / store.TOP, self._top, store.schema(self._info.layers))

    async def progress(self) -> Progress:
        """How far the run is."""
        best = self._top[0] if self._top else {}
        best_return = best["return"] if best.get("search_images") == self._images else None
        seconds = self._arrivals[-1] - self._arrivals[0] if self._arrived > 1 else 0.0
        rate = (self._arrived - 1) / seconds if seconds else 0.0
        trials = dict(self._trials)
        return Progress(sum(trials.values()), trials, self._images, self._finished, best_return, rate)

    async def top(self) -> list[dict[str, Any]]:
        """The best configurations of the highest rung so far, distinct, best first."""
        await self.flush()
        return self._top

    async def promoted(self, images: int, more: int) -> tuple[list[dict[str, Any]], int]:
        """Rows of the configurations that go on from `images` images to `more`, and among how many these were."""
        await self.flush()
        rows = (row for row in store.read_rows(self._folder) if row["search_images"] == images)
        return selection.promoted(rows, images, more, self._count, self._codes)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            with suppress(Exception):  # those who wait are told
                await self.flush()

    def _codes(self, row: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
        return store.codes_of(row, self._info.layers)

    def _complete(self, row: dict[str, Any]) -> dict[str, Any]:
        info, said = self._info, dict(row)
        codes, outcome = said.pop("codes"), said.pop("outcome")
        return {
            "schema_version": store.SCHEMA_VERSION,
            "run": info.run,
            "model": info.model,
            "dataset": info.dataset,
            "search_images": info.search_images,
            **said,
            **store.configuration_columns(info.layers, codes, info.tmax),
            **store.score_columns(info.layers, outcome),
        }

    def _count_in(self, row: dict[str, Any]) -> None:
        if row["search_images"] > self._images:
            self._images, self._finished, self._arrivals, self._arrived = row["search_images"], 0, [], 0
        self._finished += row["search_images"] == self._images

    def _index(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._ids.add(row["episode_id"])
            self._trials[row["trial"]] += row["search_images"] == self._info.search_images
        rows = [*self._top, *rows]
        highest = max((row["search_images"] for row in rows), default=0)
        rows = [row for row in rows if row["search_images"] == highest]
        self._top = selection.best(rows, self._count, self._codes)


Sink = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Sink)


def actor_name(run: str) -> str:
    """Name of a run's sink."""
    return f"sink-{run}"


def find(run: str) -> ray.actor.ActorHandle:
    """The sink of a run."""
    return ray.get_actor(actor_name(run), namespace=NAMESPACE)


def trial_name(algorithm: str, seed: int) -> str:
    """Name of the search by one algorithm from one seed."""
    return f"{algorithm}-seed{seed}"


def tune_metrics(run: str, trial: str, budget: int) -> dict[str, Any]:
    """What Tune keeps of a trial: its written episodes, the run's best return, and whether it is done."""
    progress = ray.get(find(run).progress.remote())
    episodes = progress.trials.get(trial, 0)
    return {"episodes": episodes, "best_return": progress.best_return, "done": episodes >= budget}


def share(problem: Problem) -> bytes:
    """Puts a problem into Ray's object store, to stay there as long as the driver lives.

    Its reference travels as bytes: a restarted sink may not depend on an argument that Ray could release.
    """
    return ray.cloudpickle.dumps(ray.put(problem))


def fetch_problem(run: str) -> Problem:
    """The search problem of a run, whose arrays lie in Ray's object store."""
    return ray.get(ray.cloudpickle.loads(ray.get(find(run).problem.remote())))


class Recorder:
    """Sends one trial's finished configurations to the sink."""

    def __init__(self, run: str, algorithm: str, seed: int):
        self._sink = find(run)
        self._common = {"trial": trial_name(algorithm, seed), "algorithm": algorithm, "seed": seed}
        self._pending: list[ray.ObjectRef] = []

    def add(self, episode_id: str, episode: int, outcome: dict[str, Any], search_images: int | None = None) -> None:
        """Sends one configuration.

        Args:
            outcome: the environment's last `info`.
            search_images: how many images it was scored on; None: those of the first rung.
        """
        row = self._common | {"episode_id": episode_id, "episode": episode, "time": time.time_ns() // 1_000_000}
        outcome = dict(outcome)
        row |= {"codes": outcome.pop("codes"), "outcome": outcome}
        if search_images is not None:
            row["search_images"] = search_images
        self._pending.append(self._sink.add.remote(row))

    def wait(self) -> None:
        """Returns when everything sent is on disk."""
        while self._pending:  # a row may reach the sink after the flush that was sent after it
            ray.get(self._sink.flush.remote())
            written, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=RETRY_SECONDS)
            ray.get(written)
