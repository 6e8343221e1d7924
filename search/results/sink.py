"""The actor that every finished configuration is sent to: the one writer of a run."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from approx_env.errors import InputError
from search.results import lease, store
from search.results.folder import Folder
from search.results.ledger import Ledger, Progress, RunInfo
from search.workers import losses, session

if TYPE_CHECKING:
    from approx_env.scoring.evaluator import Problem  # brings torch, which this actor does without

NAMESPACE = "tapsearch"
FLUSH_SECONDS = 10.0  # also between two beats of the lease
RETRY_SECONDS = 1.0
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 2.0
DYING_SECONDS = 20  # that Ray may take to see that a driver is dead, and to end its actors


class _Sink:
    """Writes rows, each once by its `episode_id`, and keeps the books of the run in a `Ledger`.

    `add` answers when the row is on disk; a caller that waits for the answer loses nothing when this actor dies.
    What cannot be written goes on waiting for the next attempt, however long the storage fails.

    Args:
        folder: the run's.
        info: what rows share.
        problem: where the search problem lies in Ray's object store, from `session.share`, for env runners to fetch.
        top: how many configurations to keep.
        owner: of the run, whose lease is kept alive; see `lease`.
    """

    def __init__(self, folder: Folder, info: RunInfo, problem: bytes, top: int, owner: lease.Owner | None = None):
        self._folder, self._problem = folder, problem
        self._ledger = Ledger(info, top)
        self._answers: dict[str, asyncio.Future] = {}  # by `episode_id` of the rows that wait; done when on disk
        self._part = store.Part(folder, info.layers)
        self._files: dict[str, bytes] = {}  # the newest contents of other files, to be written
        self._heart = lease.Heart(folder, owner)
        self._started: dict[str, tuple[Iterator[int], losses.Losses]] = {}  # env runners of a trial
        self._refused: dict[str, Exception] = {}  # why env runners of a trial cannot start
        self._trouble: str | None = None
        self._closed = False
        self._writing, self._beating = asyncio.Lock(), asyncio.Lock()
        self._sweep()
        loop = asyncio.get_event_loop()
        self._ready = loop.create_task(self._rebuild())
        self._regularly = [loop.create_task(task) for task in (self._beat_regularly(), self._flush_regularly())]

    async def problem(self) -> bytes:
        """Where the search problem lies."""
        return self._problem

    async def add(self, message: dict[str, Any]) -> None:
        """Takes one finished configuration and returns when it is written."""
        await asyncio.shield(self._ready)
        name = message["episode_id"]
        self._ledger.receive(message, time.monotonic())
        if message["trial"] in self._started:
            self._started[message["trial"]][1].finished()
        if name not in self._ledger.waiting:
            return
        if name not in self._answers:
            self._answers[name] = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._answers[name])  # others may wait for it, too

    async def starting(self, trial: str, count: int) -> None:
        """An env runner of a trial starts, of which there are to be `count`.

        Raises:
            ScoringFailed: they start again and again, and none has sent a row meanwhile.
        """
        if trial not in self._started:
            self._started[trial] = itertools.count(1), losses.Losses(count)
        started, lost = self._started[trial]
        if next(started) > count:
            lost.lost()

    async def refuse(self, trial: str, reason: Exception) -> None:
        """An env runner of a trial cannot start."""
        self._refused[trial] = reason

    async def refused(self, trial: str) -> Exception | None:
        """Why an env runner of a trial could not start."""
        return self._refused.get(trial)

    async def save(self, name: str, data: bytes) -> None:
        """Takes a file of the run's folder, to be written at the next flush; of several only the newest counts."""
        self._files[name] = data

    async def write(self, files: dict[str, bytes]) -> None:
        """Takes files of the run's folder and returns when they are written, one after another."""
        self._files |= files
        await self._flush_all()

    async def saved(self, name: str) -> bytes | None:
        """What `save` was last given under a name, in this process or one before; None if nothing."""
        await asyncio.shield(self._ready)
        if name in self._files:
            return self._files[name]
        with suppress(FileNotFoundError):
            return await asyncio.to_thread(self._folder.read, name)

    async def written(self, names: Iterable[str]) -> set[str]:
        """Which of these `episode_id`s have a row on disk."""
        await asyncio.shield(self._ready)
        return self._ledger.written(names)

    async def scores(self, trial: str) -> dict[str, dict[str, Any]]:
        """What the configurations that a trial proposed have scored, by `episode_id`: their rows on disk."""
        await asyncio.shield(self._ready)
        rows = await self._read()
        own = [row for row in rows if row["trial"] == trial and row["search_images"] == self._ledger.info.search_images]
        return {row["episode_id"]: row for row in own}

    async def flush(self) -> bool:
        """Writes what is waiting, now; returns whether that worked. What could not be written goes on waiting."""
        await asyncio.shield(self._ready)
        async with self._writing:
            if self._closed:
                return False
            try:
                await self._write()
                if self._trouble:  # a folder that was away may have kept the beginning of a file
                    await asyncio.to_thread(self._sweep)
                self._trouble = None
            except Exception as error:  # whatever it is: nothing may be lost, and the user is told
                self._trouble = f"{type(error).__name__}: {error}"
        return self._trouble is None

    def _sweep(self) -> None:
        """Removes the beginnings of files. The lease may be written meanwhile: its next beat writes it whole."""
        for place in (self._folder, self._folder / store.EPISODES):
            with suppress(OSError):
                place.sweep()

    async def close(self) -> None:
        """Writes what is waiting, for the last time: what comes later is not written, so that a count stays true.

        Nor is the lease kept alive any more, which can now be given back.
        """
        await self.flush()
        self._closed = True  # nothing is awaited in between
        async with self._beating:  # a beat that is under way ends
            pass

    async def _write(self) -> None:
        ledger = self._ledger
        if ledger.waiting or self._files:
            await asyncio.to_thread(self._heart.check)
        if self._heart.lost:
            raise RuntimeError("another driver has taken the run over")
        while ledger.waiting:
            rows = list(ledger.waiting.values())
            await asyncio.to_thread(self._part.write, rows)
            ledger.settle(rows)
            for row in rows:
                self._answers.pop(row["episode_id"]).set_result(None)
            self._files[store.TOP] = store.parquet(ledger.top, store.schema(ledger.info.layers))
        for name, data in list(self._files.items()):
            await asyncio.to_thread(self._folder.write, name, data)
            if self._files[name] is data:
                del self._files[name]

    async def progress(self) -> Progress:
        """How far the run is; what an earlier process has written counts, if it can be read soon."""
        await asyncio.wait({self._ready}, timeout=PATIENCE_SECONDS)
        return self._ledger.progress(self._trouble, self._heart.lost)

    async def top(self) -> list[dict[str, Any]]:
        """The best configurations of the highest rung so far, distinct, best first; waits until all is written."""
        await self._flush_all()
        return self._ledger.top

    async def promoted(self, images: int, more: int) -> tuple[list[dict[str, Any]], int]:
        """Rows of the configurations that go on from `images` images to `more`, and among how many these were."""
        await self._flush_all()
        return self._ledger.promoted(await self._read(), images, more)

    async def _flush_all(self) -> None:
        while not await self.flush():
            await asyncio.sleep(RETRY_SECONDS)

    async def _beat_regularly(self) -> None:
        while not self._heart.lost:
            async with self._beating:
                if self._closed:
                    return
                with suppress(Exception):  # the next beat may succeed
                    await asyncio.to_thread(self._heart.beat)
            await asyncio.sleep(FLUSH_SECONDS)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def _rebuild(self) -> None:
        """Takes up what an earlier process of this run has written."""
        self._ledger.restore(await self._read())

    async def _read(self) -> list[dict[str, Any]]:
        while True:
            try:
                return await asyncio.to_thread(store.read_rows, self._folder)
            except Exception as error:
                self._trouble = f"{type(error).__name__}: {error}"
            await asyncio.sleep(RETRY_SECONDS)


ON_HEAD = {session.HEAD: 0.001}
# Every row that waits for the disk is a call under way.
Sink = ray.remote(num_cpus=0, resources=ON_HEAD, max_restarts=-1, max_task_retries=-1, max_concurrency=100_000)(_Sink)


def actor_name(run: str) -> str:
    """Name of a run's sink."""
    return f"sink-{run}"


def start(
    folder: Folder, info: RunInfo, problem: Problem, top: int, owner: lease.Owner | None = None
) -> ray.actor.ActorHandle:
    """Starts the sink of a run.

    Raises:
        InputError: the cluster has one already.
    """
    named = Sink.options(name=actor_name(info.run), namespace=NAMESPACE)
    shared = session.share(problem)
    for left in range(DYING_SECONDS, -1, -1):
        try:
            return named.remote(folder, info, shared, top, owner)
        except ValueError as error:  # the name is taken: by a driver at work, or by one that has just been killed
            if not left:
                raise InputError(f"run {info.run} is at work on this cluster: choose another --run-name") from error
            time.sleep(1)


def find(run: str) -> ray.actor.ActorHandle:
    """The sink of a run."""
    return ray.get_actor(actor_name(run), namespace=NAMESPACE)


def trial_name(algorithm: str, seed: int) -> str:
    """Name of the search by one algorithm from one seed."""
    return f"{algorithm}-seed{seed}"


def episode_id(algorithm: str, seed: int, episode: int) -> str:
    """Name of an episode of a search, unique in its run."""
    return f"{trial_name(algorithm, seed)}-{episode}"


def tune_metrics(run: str, trial: str, budget: int) -> dict[str, Any]:
    """What Tune keeps of a trial: its written episodes, the run's best return, and whether it is done."""
    progress = ray.get(find(run).progress.remote())
    episodes = progress.trials.get(trial, 0)
    return {"episodes": episodes, "best_return": progress.best_return, "done": episodes >= budget}


def shared_problem(run: str) -> bytes:
    """Where the search problem of a run lies, as `session.fetch` and `session.fetch_calibration` take it."""
    return ray.get(find(run).problem.remote())


class Recorder:
    """Sends one trial's finished configurations to the sink."""

    def __init__(self, run: str, algorithm: str, seed: int):
        self._sink = find(run)
        self._common = {"trial": trial_name(algorithm, seed), "algorithm": algorithm, "seed": seed}
        self._pending: list[ray.ObjectRef] = []

    def add(self, episode_id: str, episode: int, outcome: dict[str, Any], **more: int) -> None:
        """Sends one configuration.

        Args:
            outcome: the environment's last `info`.
            more: columns of the row that are not as usual: `search_images`, if it was scored on those of a higher
                rung, and `layer_forwards`, if it took fewer than all layers.
        """
        row = self._common | {"episode_id": episode_id, "episode": episode, "time": time.time_ns() // 1_000_000}
        outcome = dict(outcome)
        row |= {"codes": outcome.pop("codes"), "outcome": outcome} | more
        self._pending.append(self._sink.add.remote(row))

    def wait(self) -> None:
        """Returns when everything sent is on disk, however long the storage fails."""
        while self._pending:  # a row may reach the sink after the flush that was sent after it
            if not ray.get(self._sink.flush.remote()):
                time.sleep(RETRY_SECONDS)
            written, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=POLL_SECONDS)
            ray.get(written)
