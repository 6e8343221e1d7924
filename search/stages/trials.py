"""Runs searches under Tune: one trial is one search, by one algorithm from one seed."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig

from search import algorithms, telling
from search.job import Job
from search.results import sink
from search.stages.live import Stage, Watch, told
from search.stages.trainable import FAILURE, AskTellSearch

PATIENCE_SECONDS = 15.0  # until it is told why the sink does not answer
TRIAL_RESTARTS = 3


def patiently(handle: ray.actor.ActorHandle, answer: ray.ObjectRef) -> Any:
    """What the sink answers; says why, while it cannot because storage fails.

    Raises:
        KeyboardInterrupt: another driver has taken the run over, as `Watch` ends it then.
    """
    said = False
    while not ray.wait([answer], timeout=PATIENCE_SECONDS)[0]:
        progress = ray.get(handle.progress.remote())
        if progress.lost or (progress.trouble and not said):
            telling.trouble(told(progress))
            said = True
        if progress.lost:
            raise KeyboardInterrupt
    return ray.get(answer)


class _AnnounceTrials(Callback):
    """Says when a search ends, if there are several, and when one has to start again."""

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        print(f"{trial}: its process died; it goes on from what is stored", flush=True)
        telling.event("search_restarted", search=str(trial))

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        episodes = trial.last_result.get("episodes", 0)
        if len(trials) > 1:
            print(f"{trial}: {episodes} episodes done", flush=True)
        telling.event("search_ended", search=str(trial), episodes=episodes)


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

    names = [sink.trial_name(settings.algorithm, seed) for seed in settings.seeds]
    with Watch(handle, Stage("search", settings.search_images, dict.fromkeys(names, settings.budget))):
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
             "needs": settings.needs}  # fmt: skip
    if hasattr(algorithm, "trial"):
        return algorithm.trial(job.problem.calibration, options, **where)
    own = {"algorithm": settings.algorithm, "options": asdict(options), "objective": settings.objective}
    return AskTellSearch, where | own
