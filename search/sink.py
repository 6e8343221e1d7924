"""The actor that every finished configuration is sent to: one writer for a run, which also counts and ranks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from approx_env.evaluator import Problem
from search import selection, store

NAMESPACE = "tapsearch"
FLUSH_SECONDS = 10.0


@dataclass(frozen=True)
class RunInfo:
    """What every row of a run has in common."""

    run: str
    model: str
    dataset: str
    layers: tuple[str, ...]
    tmax: tuple[int, ...]
    search_images: int


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    rows: int  # written configurations
    finished: int  # written ones, and those about to be
    trials: dict[str, int]  # finished configurations by trial
    best_return: float | None
    rate: float  # configurations a second, since the first one; 0 until there are two


class _Sink:
    """Writes rows, each once by its `episode_id`, and keeps the best.

    `add` answers when the row is on disk; a caller that waits for the answer loses nothing when this actor dies.

    Args:
        folder: the run's folder.
        info: what all rows share.
        problem: where the search problem lies in Ray's object store, from `share`, for env runners to fetch.
        top: how many configurations to keep.
    """

    def __init__(self, folder: str, info: RunInfo, problem: bytes, top: int):
        self._folder, self._info, self._problem, self._count = Path(folder), info, problem, top
        self._ids: set[str] = set()
        self._trials: Counter[str] = Counter()
        self._top: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []
        self._written = asyncio.Event()
        self._arrivals: list[float] = []  # times of the first configuration and of the last
        self._arrived = 0
        self._index(list(store.read_rows(self._folder)))
        self._task = asyncio.get_event_loop().create_task(self._flush_regularly())

    async def problem(self) -> bytes:
        """Where the search problem lies."""
        return self._problem

    async def add(self, row: dict[str, Any]) -> None:
        """Takes one finished configuration and returns when it is written."""
        if row["episode_id"] in self._ids:
            return
        self._ids.add(row["episode_id"])
        self._waiting.append(row)
        self._arrivals[1:] = [time.monotonic()]
        self._arrived += 1
        await self._written.wait()

    async def flush(self) -> None:
        """Writes what is waiting, now."""
        if not self._waiting:
            return
        rows, self._waiting = [self._complete(row) for row in self._waiting], []
        store.write_part(self._folder, rows, self._info.layers)
        self._index(rows)
        store.write_table(self._folder / store.TOP, self._top, store.schema(self._info.layers))
        self._written.set()
        self._written = asyncio.Event()

    async def progress(self) -> Progress:
        """How far the run is; only written rows count."""
        best = self._top[0]["return"] if self._top else None
        seconds = self._arrivals[-1] - self._arrivals[0] if self._arrived > 1 else 0.0
        rate = (self._arrived - 1) / seconds if seconds else 0.0
        return Progress(sum(self._trials.values()), len(self._ids), dict(self._trials), best, rate)

    async def top(self) -> list[dict[str, Any]]:
        """The best configurations, distinct, best first."""
        await self.flush()
        return self._top

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    def _complete(self, row: dict[str, Any]) -> dict[str, Any]:
        info = self._info
        codes, outcome = row.pop("codes"), row.pop("outcome")
        return {
            "schema_version": store.SCHEMA_VERSION,
            "run": info.run,
            "model": info.model,
            "dataset": info.dataset,
            "search_images": info.search_images,
            **row,
            **store.configuration_columns(info.layers, codes, info.tmax),
            **store.score_columns(info.layers, outcome),
        }

    def _index(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._ids.add(row["episode_id"])
            self._trials[row["trial"]] += 1
        layers = self._info.layers
        self._top = selection.best([*self._top, *rows], self._count, lambda row: store.codes_of(row, layers))


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

    def add(self, episode_id: str, episode: int, outcome: dict[str, Any]) -> None:
        """Sends one configuration; `outcome` is the environment's last `info`."""
        row = self._common | {"episode_id": episode_id, "episode": episode, "time": time.time_ns() // 1_000_000}
        outcome = dict(outcome)
        row |= {"codes": outcome.pop("codes"), "outcome": outcome}
        self._pending.append(self._sink.add.remote(row))

    def wait(self) -> None:
        """Returns when everything sent is on disk."""
        ray.get(self._sink.flush.remote())
        ray.get(self._pending)
        self._pending.clear()
