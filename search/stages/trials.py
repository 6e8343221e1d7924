"""Runs searches under Tune: one trial is one search, by one algorithm from one seed."""

from __future__ import annotations

import _thread
import logging
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig

from search import algorithms
from search.job import Job
from search.results import sink
from search.stages.trainable import FAILURE, AskTellSearch

REFRESH_SECONDS = {True: 1.0, False: 15.0}  # by whether the live line goes to a terminal
TRIAL_RESTARTS = 3


class LiveLine(threading.Thread):
    """Keeps one line on the terminal up to date while its block runs: episodes done, rate, time left, best return.

    Args:
        handle: the run's sink.
        total: how many configurations are to be scored,
        images: on how many images.
    """

    def __init__(self, handle: ray.actor.ActorHandle, total: int, images: int):
        super().__init__(daemon=True)
        self._sink, self._total, self._images = handle, total, images
        self._ended = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        terminal = sys.stdout.isatty()
        shown, trouble = 0, None
        while not self._ended.wait(REFRESH_SECONDS[terminal]):
            try:
                progress = ray.get(self._sink.progress.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue  # the sink is being restarted
            if progress.trouble != trouble or progress.lost:
                trouble = progress.trouble
                print(f"\r\033[K{_told(progress)}" if terminal else _told(progress), flush=True)
            if progress.lost:
                _thread.interrupt_main()
                return
            if progress.images != self._images or not progress.finished:
                continue  # nothing to tell yet
            if progress.finished == shown and not terminal:
                continue
            shown = progress.finished
            left = f"{(self._total - shown) / progress.rate:.0f} s left" if progress.rate else "time left unknown"
            best = "none yet" if progress.best_return is None else f"{progress.best_return:.4f}"
            text = (
                f"{shown}/{self._total} episodes, {progress.rate:.2f} episodes/s, {left}, "
                f"best return so far {best} on {self._images} images"
            )
            print(f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n", flush=True)
        if terminal:
            print("\r\033[K", end="", flush=True)


def patiently(handle: ray.actor.ActorHandle, answer: ray.ObjectRef) -> Any:
    """What the sink answers; says why, while it cannot because storage fails.

    Raises:
        KeyboardInterrupt: another driver has taken the run over, as `LiveLine` ends it then.
    """
    told = False
    while not ray.wait([answer], timeout=REFRESH_SECONDS[False])[0]:
        progress = ray.get(handle.progress.remote())
        if progress.lost or (progress.trouble and not told):
            print(_told(progress), flush=True)
            told = True
        if progress.lost:
            raise KeyboardInterrupt
    return ray.get(answer)


def _told(progress: sink.Progress) -> str:
    if progress.lost:
        return "another driver has taken this run over: this one ends"
    if progress.trouble is None:
        return "results are written again"
    return (f"results cannot be written or read ({progress.trouble}): {progress.waiting} finished configurations wait, "
            "and the search waits for them; trying again")  # fmt: skip


class _AnnounceTrials(Callback):
    """Says when a search ends, if there are several, and when one has to start again."""

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        print(f"{trial}: its process died; it goes on from what is stored", flush=True)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        if len(trials) > 1:
            result = trial.last_result
            print(f"{trial}: {result.get('episodes', 0)} episodes done", flush=True)


def run(job: Job, scratch: Path, handle: ray.actor.ActorHandle) -> None:
    """Runs a search for every seed and returns when all their rows are written; those that were done before are left.

    Args:
        scratch: a folder of this machine for Tune's own records, which nothing reads.

    Raises:
        InputError, ScoringFailed: scoring raised it, or its processes died again and again.
        RuntimeError: a search failed otherwise.
    """
    settings = job.settings
    done = ray.get(handle.progress.remote()).trials
    seeds = [
        seed for seed in settings.seeds if done.get(sink.trial_name(settings.algorithm, seed), 0) < settings.budget
    ]
    if not seeds:
        return
    trainable, space = _trainable(job, tune.grid_search(seeds))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that goes on is no error, and others are raised

    def named(trial) -> str:
        return sink.trial_name(settings.algorithm, trial.config["seed"])

    with LiveLine(handle, settings.budget * len(settings.seeds), settings.search_images):
        results = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=TuneConfig(trial_name_creator=named, trial_dirname_creator=named),
            run_config=RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[_AnnounceTrials()],
                checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=FailureConfig(max_failures=TRIAL_RESTARTS),  # a trial goes on from what the sink keeps
            ),
        ).fit()
    if results.errors:
        raise RuntimeError(f"a search failed: {results.errors[0]}")
    for result in results:
        if failure := result.metrics.get(FAILURE):
            raise failure


def _trainable(job: Job, seeds: dict) -> tuple[type, Any]:
    """What Tune runs for each of the seeds, and its configuration."""
    settings = job.settings
    algorithm = algorithms.find(settings.algorithm)
    options = algorithms.options(algorithm, settings)
    if hasattr(algorithm, "start"):
        options = replace(options, start=algorithm.start(job.problem, job.calibration_images()))
    where = {"run": job.name, "seed": seeds, "budget": settings.budget,
             "budget_exact": settings.budget_exact, "num_env_runners": settings.runners,
             "gpus": settings.gpus}  # fmt: skip
    if hasattr(algorithm, "trial"):
        return algorithm.trial(job.problem.calibration, options, **where)
    own = {"algorithm": settings.algorithm, "options": asdict(options), "objective": settings.objective}
    return AskTellSearch, where | own
