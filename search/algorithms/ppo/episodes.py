"""Episodes of PPO on an RLlib env runner: drawn by the policy, run in the environment, sent to the sink.

What an episode draws depends on the seed, its number and the weights: not on the env runner, nor on what failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from approx_env.env import TapVectorEnv
from approx_env.scoring.evaluator import CACHE_BYTES, Evaluator
from search.algorithms.ppo.policy import CodePolicy
from search.results import sink
from search.workers import session
from search.workers.losses import raised

Weights = dict[str, Any] | ray.ObjectRef  # of the policy, as an env runner takes them


@dataclass(frozen=True)
class Part:
    """What an env runner sends back."""

    first: int  # number of the first episode
    episodes: list[SingleAgentEpisode]  # in their order
    error: Exception | None = None  # what was raised in place of them


class SearchEnv(TapVectorEnv):
    """The environment of an env runner, over the problem of the run that `config` names, on so many threads."""

    def __init__(self, config: dict):
        torch.set_num_threads(1)
        count = config.get("num_envs", 1)
        # In lockstep no layer has the codes of before in all configurations: nothing is kept for that.
        problem = session.fetch(sink.shared_problem(config["run"]))
        cache_bytes = CACHE_BYTES if count == 1 else 0
        super().__init__(count, Evaluator(problem, cache_bytes, config.get("threads", 1)))


class SearchEnvRunner(SingleAgentEnvRunner):
    """Tells the sink that it starts, and what keeps it from starting.

    Ray starts one that dies anew, however often, and RLlib waits for it. So the sink counts, and says when to give up.
    """

    def __init__(self, *, config, worker_index: int = 0, **more):
        handle, trial = sink.find(config.env_config["run"]), sink.trial_name("ppo", config.seed)
        try:
            if worker_index:  # else it is no process of its own
                ray.get(handle.starting.remote(trial, config.num_env_runners))
            super().__init__(config=config, worker_index=worker_index, **more)
        except Exception as error:
            if (reason := raised(error)) is None:
                raise
            ray.get(handle.refuse.remote(trial, reason))
            raise reason from error


def attempt(runner: EnvRunner, weights: Weights, first: int, count: int) -> Part:
    """Runs episodes on an env runner; sends back what they raise, with its traceback.

    RLlib would end an env runner that raises, and tell its driver no more than that it is lost. It may do so where
    Ray lost an object or an actor: there, another attempt helps.
    """
    try:
        return Part(first, run(runner, weights, first, count))
    except Exception as error:
        if (reason := raised(error)) is None:
            raise
        return Part(first, [], reason)


def run(runner: EnvRunner, weights: Weights, first: int, count: int) -> list[SingleAgentEpisode]:
    """Runs episodes `first` to `first + count - 1` and returns when their rows are on disk.

    Weights come with the task: a runner that has just been started again knows none.
    """
    runner.set_state({COMPONENT_RL_MODULE: weights})
    seed = runner.config.seed
    recorder = sink.Recorder(runner.config.env_config["run"], "ppo", seed)
    episodes: list[SingleAgentEpisode] = []
    while len(episodes) < count:
        numbers = range(first + len(episodes), first + len(episodes) + runner.num_envs)
        finished = play(runner.env, draw(runner.module, seed, numbers))[: count - len(episodes)]
        for number, episode in zip(numbers, finished, strict=False):  # the last ones may be more than are wanted
            recorder.add(sink.episode_id("ppo", seed, number), number, episode.get_infos(-1))
        episodes += finished
    recorder.wait()
    return [episode.to_numpy() for episode in episodes]


def draw(policy: CodePolicy, seed: int, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Draws the episodes with these numbers, each from a stream of its own; as `CodePolicy.draw` has them.

    The first one takes the median of every draw: it is the incumbent itself.
    """
    shape = len(policy.limits), policy.draws
    uniforms = [
        np.random.default_rng([seed, number]).random(shape, np.float32) if number else np.full(shape, 0.5, np.float32)
        for number in numbers
    ]
    drawn = policy.draw(torch.from_numpy(np.stack(uniforms, 1)))
    return {name: column.cpu().numpy() for name, column in drawn.items()}


def play(env: gym.vector.VectorEnv, drawn: dict[str, np.ndarray]) -> list[SingleAgentEpisode]:
    """Runs drawn episodes in lockstep; RLlib learns from what they give.

    All actions are known before the first step. So the environment is told of them, which makes it faster.

    Args:
        env: gives infos as a list, as RLlib wraps it.
        drawn: columns `(layers, env.num_envs, ...)`, of which one holds the actions.
    """
    env.unwrapped.expect(drawn[Columns.ACTIONS])
    observations, infos = env.reset()
    spaces = {"observation_space": env.single_observation_space, "action_space": env.single_action_space}
    episodes = [SingleAgentEpisode(**spaces) for _ in range(env.num_envs)]
    for k, episode in enumerate(episodes):
        episode.add_env_reset(observations[k], infos[k])
    for layer, actions in enumerate(drawn[Columns.ACTIONS]):
        observations, rewards, terminateds, truncateds, infos = env.step(actions)
        for k, episode in enumerate(episodes):
            more = {name: column[layer, k] for name, column in drawn.items() if name != Columns.ACTIONS}
            episode.add_env_step(
                observations[k], actions[k], rewards[k], infos[k],
                terminated=terminateds[k], truncated=truncateds[k], extra_model_outputs=more,
            )  # fmt: skip
    return episodes
