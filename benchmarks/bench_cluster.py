"""Where does a search saturate when there are many env runners?

Question: how many rows a second does a PPO search bring to disk with 1 to 64 env runners whose evaluations take a known
time? Which share of the time is the learner idle, and which do runners wait? What does a larger iteration bring?

Method: the search's own algorithm, callbacks and sink, without Tune. Evaluations are simulated: an environment of
SqueezeNet's nine layers whose last step sleeps for half a second and gives a score from the codes. It hardly uses the
CPU, so that two cores can hold many. Logical env runners beyond eight share processes, in lockstep, up to eight in one.
Each size runs three iterations; the first, a warm-up, does not count. Rows a second are those on disk; the ideal is the
number of logical runners over the length of an evaluation. `bench_store.py` asks the sink alone for its limit.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from ray import tune

from approx_env import env
from approx_env.calibration import Calibration
from benchmarks import record
from search import ppo, sink, store
from search.storage import Folder

SECONDS = 0.5  # of an evaluation
PROCESSES = 8  # at most
SIZES = ((1, 8), (4, 32), (16, 32), (64, 32), (64, 256))
QUICK_SIZES = ((1, 4), (2, 4))
ITERATIONS = 3
STORE_BYTES = 2**28


class SleepingEnv(VectorEnv):
    """The search's environment without its evaluator: an episode's last step takes `seconds`."""

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, calibration: Calibration, seconds: float):
        self.num_envs, self._layers, self._seconds = num_envs, calibration.layers, seconds
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
        self.single_action_space = env.CodeSpace(self._layers[0].tmax)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._codes: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        self._codes = []
        return self._observe(0), {}

    def step(self, actions):
        no = np.zeros(self.num_envs, bool)
        if len(self._codes) == len(self._layers):
            return *self.reset()[:1], np.zeros(self.num_envs), no, no.copy(), {}
        self._codes.append(np.asarray(actions))
        ended, infos = len(self._codes) == len(self._layers), {}
        rewards = np.zeros(self.num_envs)
        if ended:
            time.sleep(self._seconds)
            for k, codes in enumerate(np.stack(self._codes, 1)):
                rewards[k] = -np.abs(codes).mean() / 255
                infos = self._add_info(infos, _outcome(codes, rewards[k]), k)
        position = min(len(self._codes), len(self._layers) - 1)
        return self._observe(position), rewards, no | ended, no.copy(), infos

    def _observe(self, layer: int) -> np.ndarray:
        return np.tile(self._layers[layer].observation, (self.num_envs, 1))


def _outcome(codes: np.ndarray, score: float) -> dict[str, Any]:
    names = ("accuracy", "soft_accuracy", "drop_points", "kd", "at", "return")
    shares = np.full((len(codes), 4), 0.25)
    return {"codes": codes, **dict.fromkeys(names, float(score)), "layer_shares": shares, "shares": shares[0]}


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `cluster.parquet`; no claim depends on it."""
    record.announce("cluster", __doc__)
    problem = env.shipped_problem("squeezenet")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp") as temporary:
        ray.init(address="local", num_cpus=PROCESSES, object_store_memory=STORE_BYTES, include_dashboard=False,
                 log_to_driver=False, _temp_dir=temporary)  # fmt: skip
        try:
            for runners, episodes in QUICK_SIZES if quick else SIZES:
                rows += _search(Folder(temporary), problem, runners, episodes)
        finally:
            ray.shutdown()
    record.write(folder, "cluster", __doc__, rows)
    return {}


def _search(results: Folder, problem, runners: int, episodes: int) -> list[dict[str, Any]]:
    """Rows of a search's iterations with so many logical runners and episodes an iteration."""
    name, processes = f"{runners}-{episodes}", min(runners, PROCESSES)
    (results / name / store.EPISODES).create()
    info = sink.RunInfo(name, "squeezenet", "none", problem.network.layers, problem.calibration.tmax, 1)
    handle = sink.start(results / name, info, problem, 30)
    config = ppo.configure(
        name, 0, ITERATIONS * episodes, 1e-3, processes, problem.calibration,
        envs_per_runner=runners // processes, iteration_episodes=episodes,
    )  # fmt: skip
    calibration = problem.calibration
    tune.register_env("sleeping", lambda given: SleepingEnv(given["num_envs"], calibration, SECONDS))
    config.environment("sleeping", env_config=config.env_config | {"num_envs": runners // processes})
    algorithm = config.build_algo()
    learning = _timed(algorithm.learner_group, "update")
    measured = []
    for iteration in range(ITERATIONS):
        learning.clear()
        begin = time.monotonic()
        algorithm.train()
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
