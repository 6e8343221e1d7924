"""Where does a search saturate when there are many env runners?

Question: how many rows a second does a PPO search bring to disk with 1 to 64 env runners whose evaluations take a known
time? Which share of the time is the learner idle, and which do runners wait? What does a larger iteration bring?

Method: the search's own algorithm, environment, callbacks and sink, without Tune. Evaluations are simulated by an
object that sleeps for half a second. Its scores are quintile's on a few images, with a return made from the codes. It
hardly uses the CPU, so that two cores can hold many. Logical env runners beyond eight share processes, in lockstep, up
to eight in one. Each size runs three iterations; the first, a warm-up, does not count. Rows a second are those on disk;
the ideal is the number of logical runners over the length of an evaluation. `bench_store.py` asks the sink alone for
its limit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from approx_env import env
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Score
from benchmarks import record
from search.algorithms.ppo import Options, learner
from search.results import sink, store
from search.results.folder import Folder
from search.stages import trainable
from search.workers.session import session

SECONDS = 0.5  # of an evaluation
PROCESSES = 8  # at most
SIZES = ((1, 8), (4, 32), (16, 32), (64, 32), (64, 256))
QUICK_SIZES = ((1, 4), (2, 4))
ITERATIONS = 3
IMAGES = 16  # that the scores are of


class Sleeper:
    """Stands in for an evaluator: `SECONDS` make the scores of configurations in lockstep, and no network does.

    Args:
        score: what a score holds beside its return.
    """

    def __init__(self, calibration: Calibration, score: Score):
        self.calibration, self._score = calibration, score

    def begin(self, configurations: int = 1) -> Sleep:
        return Sleep(len(self.calibration.layers), self._score)


class Sleep:
    """Stands in for an evaluation."""

    def __init__(self, layers: int, score: Score):
        self._layers, self._score, self._codes = layers, score, []
        self.scores: list[Score] | None = None

    @property
    def layer(self) -> int:
        return len(self._codes)

    def complete(self, several: Sequence[np.ndarray]) -> None:
        """Its steps take the time."""

    def advance(self, codes: np.ndarray) -> list[float]:
        self._codes.append(codes)
        if self.layer < self._layers:
            return [0.0] * len(codes)
        time.sleep(SECONDS)
        returns = [-whole.mean() / 255 for whole in np.stack(self._codes, 1)]
        self.scores = [replace(self._score, return_=return_) for return_ in returns]
        return returns


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `cluster.parquet`; no claim depends on it."""
    record.announce("cluster", __doc__)
    problem = env.shipped_problem("squeezenet")
    few = replace(problem, images=problem.images[:IMAGES], labels=problem.labels[:IMAGES])
    score = Evaluator(few).evaluate(problem.calibration.quintile)
    rows: list[dict[str, Any]] = []
    with session("local", cores=PROCESSES) as scratch:
        for runners, episodes in QUICK_SIZES if quick else SIZES:
            rows += _search(Folder(scratch), problem, score, runners, episodes)
    record.write(folder, "cluster", __doc__, rows)
    return {}


def _search(results: Folder, problem: Problem, score: Score, runners: int, episodes: int) -> list[dict[str, Any]]:
    """Rows of a search's iterations with so many logical runners and episodes an iteration.

    Raises:
        Exception: what ended the search.
    """
    name, processes = f"{runners}-{episodes}", min(runners, PROCESSES)
    (results / name / store.EPISODES).create()
    info = sink.RunInfo(name, "squeezenet", "none", problem.network.layers, problem.calibration.tmax, 1)
    handle = sink.start(results / name, info, problem, 30)
    config = learner.configure(
        problem.calibration, Options(iteration_episodes=episodes, envs_per_runner=runners // processes),
        run=name, seed=0, budget=ITERATIONS * episodes, num_env_runners=processes,
    )  # fmt: skip
    calibration = problem.calibration
    tune.register_env("sleeping", lambda given: env.TapVectorEnv(given["num_envs"], Sleeper(calibration, score)))
    config.environment("sleeping", env_config=config.env_config | {"num_envs": runners // processes})
    algorithm = config.build_algo()
    learning = _timed(algorithm.learner_group, "update")
    measured = []
    for iteration in range(ITERATIONS):
        learning.clear()
        begin = time.monotonic()
        if failure := algorithm.train().get(trainable.FAILURE):
            raise failure
        seconds = time.monotonic() - begin
        if iteration:
            measured.append({
                "runners": runners, "processes": processes, "episodes": episodes, "iteration": iteration,
                "seconds": seconds, "rows_per_second": episodes / seconds, "ideal": runners / SECONDS,
                "learning_seconds": sum(learning), "learner_idle": 1 - sum(learning) / seconds,
                "runners_busy": episodes * SECONDS / (runners * seconds),
            })  # fmt: skip
    algorithm.stop()
    ray.kill(handle)
    told = {column: float(np.median([row[column] for row in measured])) for column in measured[0]}
    print("{runners:.0f} runners, {episodes:.0f} episodes an iteration: {rows_per_second:.1f} rows/s of {ideal:.0f}, "
          "runners busy {runners_busy:.0%}, learner idle {learner_idle:.0%}, learning {learning_seconds:.2f} s"
          .format(**told), flush=True)  # fmt: skip
    return measured


def _timed(owner: object, name: str) -> list[float]:
    """Replaces a method by one that notes how long each call took, seconds."""
    method, taken = getattr(owner, name), []

    def noted(*arguments, **keywords):
        begin = time.monotonic()
        result = method(*arguments, **keywords)
        taken.append(time.monotonic() - begin)
        return result

    setattr(owner, name, noted)
    return taken
