"""PPO as a Tune trainable: RLlib's algorithm with an exact budget of episodes and rows in the sink."""

from __future__ import annotations

import math
from typing import Any

import torch
from ray import tune
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from approx_env.calibration import Calibration
from approx_env.env import TapVectorEnv
from approx_env.evaluator import Evaluator
from search import sink
from search.policy import CodePolicy

EPISODES_AN_ITERATION = 32
EPOCHS = 10
MINIBATCH_SHARE = 4  # a minibatch is this part of an iteration's steps
CLIP = 0.2
GRAD_CLIP = 0.5
ENTROPY = 0.001
HIDDEN = 128
SEED_STRIDE = 100_003  # keeps the streams of a trial's env runners apart


class RecordEpisodes(RLlibCallback):
    """Sends every finished episode to the sink, and gives each env runner its own random stream."""

    def __init__(self):
        super().__init__()
        self._recorder: sink.Recorder | None = None
        self._episode = 0

    def on_episode_created(self, *, env_runner, **kwargs) -> None:
        if self._recorder is None:  # the first episode of this env runner
            config = env_runner.config
            self._recorder = sink.Recorder(config.env_config["run"], "ppo", config.seed)
            stream = config.seed * SEED_STRIDE + (env_runner.worker_index or 0)
            env_runner.module.eval()  # once: RLlib would otherwise go there and back at every step
            env_runner.module.generator = torch.Generator().manual_seed(stream)

    def on_episode_end(self, *, episode, env_runner, **kwargs) -> None:
        runner, runners = max(1, env_runner.worker_index or 0), max(1, env_runner.config.num_env_runners)
        # Env runners take turns in the numbering, which so does not depend on who is faster.
        self._recorder.add(episode.id_, self._episode * runners + runner - 1, episode.get_infos(-1))
        self._episode += 1

    def on_sample_end(self, **kwargs) -> None:
        self._recorder.wait()


class TapPPO(PPO):
    """PPO that stops after exactly `budget` episodes, shared out evenly among the env runners.

    Each iteration asks every env runner once for its share of episodes, and puts them together in the runners'
    order: which runner is faster changes nothing.
    """

    @classmethod
    def default_resource_request(cls, config):
        return resources(config["num_env_runners"], config["num_gpus_per_env_runner"])

    def setup(self, config) -> None:
        super().setup(config)
        self._budget = self.config.env_config["budget"]
        self._finished = 0

    def step(self):
        result = super().step()
        trial = sink.trial_name("ppo", self.config.seed)
        return result | sink.tune_metrics(self.config.env_config["run"], trial, self._budget)

    def training_step(self) -> None:
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            sampled = self._sample(min(EPISODES_AN_ITERATION, self._budget - self._finished))
            episodes = [episode for part, _ in sampled for episode in part]
            if not episodes:
                return  # every env runner failed; RLlib restores them before the next iteration
            self._finished += len(episodes)
            self.metrics.aggregate([metrics for _, metrics in sampled], key=ENV_RUNNER_RESULTS)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
            learned = self.learner_group.update(
                episodes=episodes,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
            self.metrics.aggregate(learned, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def _sample(self, wanted: int) -> list[tuple[list, dict]]:
        """Episodes and metrics of every env runner, in the runners' order."""
        if self.env_runner_group.num_remote_workers() == 0:
            runner = self.env_runner_group.local_env_runner
            return [(runner.sample(num_episodes=wanted), runner.get_metrics())]
        runners = self.env_runner_group.healthy_worker_ids()

        def sample(runner):
            position = runners.index(runner.worker_index)
            share = wanted // len(runners) + (position < wanted % len(runners))
            episodes = runner.sample(num_episodes=share) if share else []
            return runner.worker_index, episodes, runner.get_metrics()

        results = self.env_runner_group.foreach_env_runner(sample, local_env_runner=False, timeout_seconds=None)
        return [(episodes, metrics) for _, episodes, metrics in sorted(results, key=lambda result: result[0])]


def resources(runners: int, gpus: float) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray: a core and `gpus` GPUs for each runner.

    The trial itself takes turns with its runners and needs no core of its own; RLlib wants a bundle for it all the
    same, and one byte of memory is the least that every node has.
    """
    runner = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    return tune.PlacementGroupFactory([{"memory": 1}] + [runner] * runners if runners else [runner])


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
) -> PPOConfig:
    """RLlib's configuration of a search; `seed` is a number, or Tune's grid of them.

    Each env runner takes `envs_per_runner` configurations through the network in lockstep.

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
    episodes = min(EPISODES_AN_ITERATION, budget)
    steps = episodes * layers
    return (
        PPOConfig(algo_class=TapPPO)
        .environment("TAP-v0", env_config={"run": run, "budget": budget})
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
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1)
        .debugging(seed=seed, log_level="ERROR")
    )
