"""PPO as a Tune trainable: RLlib's algorithm with an exact budget of episodes and rows in the sink."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

import numpy as np
import ray
import safetensors.torch
import torch
from ray import tune
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.debug import update_global_seed_if_necessary
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)

from approx_env.calibration import Calibration
from approx_env.env import TapVectorEnv
from approx_env.evaluator import Evaluator
from search import sink, store
from search.policy import CodePolicy

EPISODES_AN_ITERATION = 32
EPOCHS = 8
MINIBATCH_SHARE = 2  # a minibatch is this part of an iteration's steps
CLIP = 0.2
GRAD_CLIP = 0.5
ENTROPY = 0.001
HIDDEN = 128
EVEN_SHARE = 0.75  # of its even share of an iteration is what an env runner gets at once
LOSSES_TOLERATED = 5  # of each env runner in a row, before a search is given up
POLL_SECONDS = 0.02
PROBE_SECONDS = 2.0  # between two looks whether a lost env runner is back


class RecordEpisodes(RLlibCallback):
    """Numbers the episodes of an env runner from its `next_episode`, draws each from a stream of its own, and sends
    the finished ones to the sink.

    What an episode draws depends on the seed, its number and the weights: not on the env runner, nor on what failed.
    """

    def __init__(self):
        super().__init__()
        self._recorder: sink.Recorder | None = None
        self._numbers: dict[int, int] = {}  # of the episodes under way

    def on_episode_created(self, *, env_runner, env_index, **kwargs) -> None:
        config, module = env_runner.config, env_runner.module
        if self._recorder is None:  # the first episode of this env runner
            self._recorder = sink.Recorder(config.env_config["run"], "ppo", config.seed)
            module.eval()  # once: RLlib would otherwise go there and back at every step
            module.uniforms = torch.zeros(len(module.limits), env_runner.num_envs, 4)
        number, env_runner.next_episode = env_runner.next_episode, env_runner.next_episode + 1
        stream = np.random.default_rng([config.seed, number])
        module.uniforms[:, env_index] = torch.from_numpy(stream.random((len(module.limits), 4), np.float32))
        self._numbers[env_index] = number

    def on_episode_end(self, *, episode, env_runner, env_index, **kwargs) -> None:
        number = self._numbers[env_index]
        self._recorder.add(sink.episode_id("ppo", env_runner.config.seed, number), number, episode.get_infos(-1))

    def on_sample_end(self, **kwargs) -> None:
        self._recorder.wait()


class TapPPO(PPO):
    """PPO that stops after exactly `budget` episodes.

    Each iteration hands its episodes to whichever env runner is free, what a failed one had begun to another, and puts
    them together in their order: which runners there are, and which are faster or fail, changes nothing. After each
    iteration weights and Adam's moments go to the sink, from where a search that was cut off goes on.
    """

    @classmethod
    def default_resource_request(cls, config):
        return resources(config["num_env_runners"], config["num_gpus_per_env_runner"])

    def setup(self, config) -> None:
        super().setup(config)
        self._run, self._budget = self.config.env_config["run"], self.config.env_config["budget"]
        self._trial = sink.trial_name("ppo", self.config.seed)
        self._finished = 0
        handle = sink.find(self._run)
        stored = ray.get(handle.saved.remote(self._state_file))
        if stored is not None:
            state = safetensors.torch.load(stored)
            names = [sink.episode_id("ppo", self.config.seed, number) for number in range(int(state["episodes"]))]
            # A search that has lost rows begins anew: it draws the same, and the sink knows what it has.
            if len(ray.get(handle.written.remote(names))) == len(names):
                self._restore(state)

    @property
    def _state_file(self) -> str:
        return f"{self._trial}{store.STATE_SUFFIX}"

    def step(self):
        result = super().step()
        return result | sink.tune_metrics(self._run, self._trial, self._budget)

    def training_step(self) -> None:
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            wanted = self.config.env_config["iteration_episodes"]
            episodes = self._sample(min(wanted, self._budget - self._finished))
            if not episodes:  # all are done, and only the sink has not said so yet
                return
            self._finished += len(episodes)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
            # RLlib shuffles minibatches with the global streams.
            stream = np.random.SeedSequence([self.config.seed, self._finished]).generate_state(1)
            update_global_seed_if_necessary("torch", int(stream[0]))
            learned = self.learner_group.update(
                episodes=episodes,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
            self.metrics.aggregate(learned, key=LEARNER_RESULTS)
        state = safetensors.torch.save(self._on_learner(_state) | {"episodes": torch.tensor(self._finished)})
        sink.find(self._run).save.remote(self._state_file, state)

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        self._finished = int(state.pop("episodes"))
        self._on_learner(partial(_set_state, state=state))

    def _on_learner(self, function: Callable) -> Any:
        (result,) = self.learner_group.foreach_learner(function)
        return result.get()

    def _weights(self) -> dict[str, Any]:
        """Of the policy, as an env runner takes them."""
        part = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(components=[part], inference_only=True)
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE]

    def _sample(self, wanted: int) -> list:
        """The next `wanted` episodes, in their order."""
        if not wanted:
            parts = []
        elif self.env_runner_group.num_remote_env_runners() == 0:
            parts = [sample_range(self.env_runner_group.local_env_runner, self._weights(), self._finished, wanted)]
        else:
            parts = self._sample_remotely(wanted, ray.put(self._weights()))
        self.metrics.aggregate([metrics for _, _, metrics in parts], key=ENV_RUNNER_RESULTS)
        return [episode for _, episodes, _ in sorted(parts, key=lambda part: part[0]) for episode in episodes]

    def _sample_remotely(self, wanted: int, weights: ray.ObjectRef) -> list[tuple[int, list, dict]]:
        group, parts, losses, probed = self.env_runner_group, [], 0, time.monotonic()
        chunks = deque(shares(self._finished, wanted, self.config.num_env_runners, self.config.num_envs_per_env_runner))
        busy: dict[int, tuple[int, int]] = {}  # env runners, and the chunks that they are at
        while chunks or busy:
            for runner in sorted(set(group.healthy_env_runner_ids()).difference(busy)):
                if chunks:
                    busy[runner] = chunks.popleft()
                    first, count = busy[runner]
                    task = partial(sample_range, weights=weights, first=first, count=count)
                    group.foreach_env_runner_async(task, tag="sample", remote_worker_ids=[runner])
            for runner, part in group.fetch_ready_async_reqs(tags="sample", timeout_seconds=POLL_SECONDS):
                parts.append(part)
                del busy[runner]
                losses = 0
            healthy = group.healthy_env_runner_ids()
            for runner in set(busy).difference(healthy):
                chunks.appendleft(busy.pop(runner))
                losses += 1
            if losses > LOSSES_TOLERATED * self.config.num_env_runners:
                raise RuntimeError(f"env runners were lost {losses} times, and none finished: see Ray's logs")
            if len(healthy) < self.config.num_env_runners and time.monotonic() - probed > PROBE_SECONDS:
                self.restore_env_runners(group)
                probed = time.monotonic()
        return parts


def sample_range(
    runner: EnvRunner, weights: dict[str, Any] | ray.ObjectRef, first: int, count: int
) -> tuple[int, list, dict]:
    """Runs episodes `first` to `first + count - 1` on an env runner: `first` again, the episodes, and metrics.

    Weights come with the task: a runner that has just been started again knows none.
    """
    runner.set_state({COMPONENT_RL_MODULE: weights})
    runner.next_episode = first
    return first, runner.sample(num_episodes=count), runner.get_metrics()


def shares(first: int, wanted: int, runners: int, together: int) -> Iterator[tuple[int, int]]:
    """Cuts `wanted` episodes from number `first` on into chunks `(first, count)`, multiples of `together` but the last.

    Every runner gets most of its even share at once; what is left is cut finer, for those that are done first.
    """

    def whole(episodes: float) -> int:
        return max(1, math.ceil(episodes / together)) * together

    large = whole(wanted * EVEN_SHARE / runners) if runners > 1 else wanted
    small = whole((wanted - large * runners) / (2 * runners))
    end = first + wanted
    for chunk in chain(repeat(large, runners), repeat(small)):
        if first >= end:
            return
        count = min(chunk, end - first)
        yield first, count
        first += count


def _state(learner) -> dict[str, torch.Tensor]:
    """Weights and Adam's moments."""
    state = {f"module.{name}": value for name, value in learner.module[DEFAULT_MODULE_ID].state_dict().items()}
    for index, moments in learner.get_optimizer(DEFAULT_MODULE_ID).state_dict()["state"].items():
        state |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    return {name: value.contiguous() for name, value in state.items()}


def _set_state(learner, state: dict[str, torch.Tensor]) -> None:
    optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
    module, moments = {}, defaultdict(dict)
    for name, value in state.items():
        kind, _, rest = name.partition(".")
        if kind == "module":
            module[rest] = value
        else:
            index, _, rest = rest.partition(".")
            moments[int(index)][rest] = value
    learner.module[DEFAULT_MODULE_ID].load_state_dict(module)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})


def resources(runners: int, gpus: float) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray: a core and `gpus` GPUs for each runner, on as many nodes as there are.

    The trial itself takes turns with its runners and needs no core of its own. It lives on the head, without which
    nothing goes on anyway: so no other node is one that a search could not do without.
    """
    runner = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    bundles = [sink.ON_HEAD] + [runner] * runners if runners else [runner | sink.ON_HEAD]
    return tune.PlacementGroupFactory(bundles, strategy="SPREAD")


def make_env(config: dict) -> TapVectorEnv:
    """The environment of an env runner, over the run's problem, on one thread."""
    torch.set_num_threads(1)
    # A policy hardly ever draws the same codes for the first layers twice: nothing is kept for that.
    evaluator = Evaluator(sink.fetch_problem(config["run"]), cache_bytes=0)
    return TapVectorEnv(config.get("num_envs", 1), evaluator)


def configure(
    run: str,
    seed: Any,
    budget: int,
    learning_rate: float,
    num_env_runners: int,
    calibration: Calibration,
    envs_per_runner: int = 1,
    gpus_per_runner: float = 0,
    iteration_episodes: int = EPISODES_AN_ITERATION,
) -> PPOConfig:
    """RLlib's configuration of a search; `seed` is a number, or Tune's grid of them.

    Each env runner takes `envs_per_runner` configurations through the network in lockstep; PPO learns from
    `iteration_episodes` at a time.

    Source of the objective: Schulman et al., arXiv:1707.06347, eq. 7, without the KL term.
    """
    tune.register_env("TAP-v0", make_env)
    layers = len(calibration.layers)
    model = {
        "tmax": list(calibration.tmax),
        "start": [list(codes) for codes in calibration.quintile],
        "hidden": HIDDEN,
        "observations": [layer.observation.tolist() for layer in calibration.layers],
    }
    episodes = min(iteration_episodes, budget)
    steps = episodes * layers
    return (
        PPOConfig(algo_class=TapPPO)
        .environment("TAP-v0", env_config={"run": run, "budget": budget, "iteration_episodes": episodes})
        .env_runners(
            num_env_runners=num_env_runners,
            num_cpus_per_env_runner=1,
            num_gpus_per_env_runner=gpus_per_runner,
            num_envs_per_env_runner=envs_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
            sample_timeout_s=None,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=steps,
            # RLlib's learner adds a last observation, without a loss, to each episode.
            minibatch_size=math.ceil((steps + episodes) / MINIBATCH_SHARE),
            num_epochs=EPOCHS,
            lr=learning_rate,
            gamma=1.0,
            lambda_=1.0,
            clip_param=CLIP,
            vf_clip_param=math.inf,
            grad_clip=GRAD_CLIP,
            entropy_coeff=ENTROPY,
            use_kl_loss=False,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=CodePolicy, model_config=model))
        .callbacks(RecordEpisodes)
        .fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1,
            env_runner_health_probe_timeout_s=0.5,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
