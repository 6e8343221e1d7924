"""Rungs: the best configurations of a search are scored again on more images."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing
from itertools import pairwise

import ray

from search.job import Job
from search.results import sink, store
from search.stages.live import Stage, Watch
from search.stages.trials import patiently
from search.workers.runners import Runners


def run(job: Job, handle: ray.actor.ActorHandle) -> None:
    """Promotes configurations from rung to rung and returns when all their rows are written; without rungs, at once.

    A promoted configuration's row has trial, seed and episode of the row that it was promoted for.
    """
    settings, layers = job.settings, job.problem.network.layers
    recorders = {seed: sink.Recorder(job.name, settings.algorithm, seed) for seed in settings.seeds}
    for below, problem in pairwise(job.rungs):
        images, began = len(problem.labels), time.monotonic()
        rows, candidates = patiently(handle, handle.promoted.remote(len(below.labels), images))
        if not rows:  # none keeps the budget: the end of the run says so
            return
        names = {f"{row['episode_id'].partition('@')[0]}@{images}": row for row in rows}
        written = ray.get(handle.written.remote(list(names)))  # before this run was cut off
        todo = {name: row for name, row in names.items() if name not in written}
        if todo:
            runners = Runners(problem, min(settings.runners, len(todo)), settings.needs)
            stage = Stage("promotion", images, Counter(row["trial"] for row in rows))
            with closing(runners), Watch(handle, stage):
                scores = runners.evaluate([store.codes_of(row, layers) for row in todo.values()])
                for (name, row), outcome in zip(todo.items(), scores, strict=True):
                    recorders[row["seed"]].add(name, row["episode"], outcome, search_images=images)
                for recorder in recorders.values():
                    recorder.wait()
        print(f"{len(rows)} of {candidates} configurations promoted to {images} images, "
              f"scored in {time.monotonic() - began:.1f} s", flush=True)  # fmt: skip
