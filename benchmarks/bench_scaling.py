"""What does a whole PPO job spend beside its evaluations, and what does a second env runner bring?

Question: how many episodes a second does `python -m search.run` score with two env runners and with one? Which share of
its wall time is not the evaluator's: RLlib, Ray, storage and learning? How much memory does an env runner take above
Ray's own?

Method: PPO on SqueezeNet, 1,024 search images (digits as PNG files), 96 episodes in iterations of 16, each job in
processes of its own, as a user starts it. Jobs with one and with two env runners take turns, and who is first changes
from pair to pair. An iteration lasts from the last episode of the one before it to its own last episode, by the `time`
of the rows, so that learning, weights and writing are in it; the first one, a warm-up, does not count. Each of the
other five is compared with the same one of the pair's other job, which makes five repetitions of a pair.
A set-up hook that Ray runs in each worker (`trace.py`) notes when an env runner enters and leaves the evaluator; the
orchestration's share of an iteration is 1 - (seconds in the evaluator, all env runners) / (wall time x env runners), so
that an idle env runner counts as orchestration. The claim is about the job with two; one env runner's is in the rows.
Memory is the proportional set size (Pss, so that pages shared with others count once in all) of the env runner of a job
without the hook, twice a second from its first written episodes to its end, minus that of a bare actor at the same
moment, which has imported ray, RLlib's PPO and torch, as every env runner of RLlib does, and holds nothing. That actor
lives in a second Ray, started with the same settings: a job's own lets no one join. Libraries are shared between both.
"""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks import bare_actor, record, search_job, trace
from benchmarks.search_job import SearchJob
from search.algorithms import ppo
from search.results import store
from search.workers.session import session

EPISODES_AN_ITERATION = ppo.Options.iteration_episodes
RUNNERS = (1, 2)
PAIRS, ITERATIONS, IMAGES = 3, 6, 1024
QUICK_PAIRS, QUICK_ITERATIONS, QUICK_IMAGES = 1, 2, 256
MEMORY_ITERATIONS = 4
ENV_RUNNER = "EnvRunner"  # in the title of an env runner's process
POLL_SECONDS = 0.5


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `scaling.parquet` and returns the claims' repetitions."""
    record.announce("scaling", __doc__)
    pairs, iterations, count = (QUICK_PAIRS, QUICK_ITERATIONS, QUICK_IMAGES) if quick else (PAIRS, ITERATIONS, IMAGES)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tb-") as temporary:
        images = Path(temporary)
        search_job.write_images(images, count)
        for pair in range(pairs):
            for runners in RUNNERS if pair % 2 == 0 else RUNNERS[::-1]:
                rows += _iterations(images, runners, iterations, count, pair)
        memory = _memory(images, count)
    above = np.array([row["env_runner_mb"] - row["bare_actor_mb"] for row in memory])
    print(f"an env runner takes {np.median(above):.0f} MB more than a bare actor", flush=True)
    record.write(folder, "scaling", __doc__, rows + memory)
    rates, shares = (
        {runners: np.array([row[column] for row in rows if row["runners"] == runners and column in row])
         for runners in RUNNERS}
        for column in ("episodes_per_second", "orchestration_share")
    )  # fmt: skip
    return {
        "two_runners_over_one": rates[2] / rates[1],
        "orchestration_share": shares[2],
        "runner_memory_mb": above,
    }


def _iterations(images: Path, runners: int, iterations: int, count: int, pair: int) -> list[dict[str, Any]]:
    """Runs a job and gives a row for each of its iterations but the first."""
    with tempfile.TemporaryDirectory(prefix="tb-") as noted:
        begin = time.monotonic()
        environment = trace.environment(Path(noted))
        with SearchJob(images, runners, iterations * EPISODES_AN_ITERATION, count, environment) as job:
            job.finish()
            seconds = time.monotonic() - begin
            ends = search_job.iteration_ends(store.read(job.folder), EPISODES_AN_ITERATION)
        calls = trace.read(Path(noted))
    rows = []
    for iteration, (start, end) in enumerate(pairwise(ends), 1):
        evaluating = sum(trace.seconds_within(one, start, end) for one in calls)
        rows.append({
            "what": "iteration", "runners": runners, "images": count, "pair": pair, "iteration": iteration,
            "seconds": end - start, "episodes_per_second": EPISODES_AN_ITERATION / (end - start),
            "orchestration_share": 1 - evaluating / (runners * (end - start)), "job_seconds": seconds,
        })  # fmt: skip
        print("pair {pair}, {runners} env runners, iteration {iteration}: {episodes_per_second:.2f} episodes/s, "
              "orchestration {orchestration_share:.1%}".format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def _memory(images: Path, count: int) -> list[dict[str, Any]]:
    """Runs a job and gives rows of its env runner's memory, sampled while it scores, and of a bare actor's."""
    samples = []
    job = SearchJob(images, 1, MEMORY_ITERATIONS * EPISODES_AN_ITERATION, count, {})
    with session("local"), job:
        bare = bare_actor.BareActor.remote()
        own = ray.get(bare.process.remote())
        while job.running and not any((job.folder / store.EPISODES).glob("part-*")):  # no episode is written yet
            time.sleep(POLL_SECONDS)
        runners = [number for number, title in job.processes() if ENV_RUNNER in title]
        while job.running and runners and (memory := search_job.memory_mb(runners[0])):
            samples.append({"what": "memory", "runners": 1, "images": count, "env_runner_mb": memory,
                            "bare_actor_mb": search_job.memory_mb(own)})  # fmt: skip
            time.sleep(POLL_SECONDS)
        job.finish()
    return samples
