"""PPO as a Tune trainable: RLlib's algorithm with an exact budget of episodes and rows in the sink."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any

import numpy as np
import ray
import safetensors.torch
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.debug import update_global_seed_if_necessary
from ray.rllib.utils.metrics import (
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)

from approx_env.scoring.calibration import Calibration
from search.algorithms.ppo import Options, episodes
from search.algorithms.ppo.episodes import Part
from search.algorithms.ppo.policy import CodePolicy
from search.objectives import OBJECTIVES, Score, values
from search.results import sink, store
from search.stages import trainable
from search.workers.losses import Losses, ScoringFailed, raised
from search.workers.processes import ONE_CORE, Needs

EPOCHS = 8
MINIBATCH_SHARE = 2  # a minibatch is this part of an iteration's steps
CLIP = 0.2
GRAD_CLIP = 0.5
ENTROPY = 0.001
HIDDEN = 128
# An env runner gets this part of its even share of an iteration at once. The rest goes to whoever is done first.
EVEN_SHARE = 0.75
POLL_SECONDS = 0.02
PROBE_SECONDS = 2.0  # between two looks whether a lost env runner is back


class TapPPO(PPO):
    """PPO that stops after exactly `budget` episodes.

    Each iteration hands its episodes to whichever env runner is free, what a failed one had begun to another, and puts
    them together in their order: which runners there are, and which are faster or fail, changes nothing. After each
    iteration weights and Adam's moments go to the sink, from where a search that was cut off goes on.
    """

    _refused: Exception | None = None  # why env runners cannot start

    @classmethod
    def default_resource_request(cls, config):
        needs = Needs(config["num_cpus_per_env_runner"], config["num_gpus_per_env_runner"])
        return trainable.resources(config["num_env_runners"], needs)

    def setup(self, config) -> None:
        self._run, self._budget = config["env_config"]["run"], config["env_config"]["budget"]
        self._trial = sink.trial_name("ppo", config["seed"])
        self._finished, self._best = 0, None  # episodes, and the key of the incumbent's score
        handle = sink.find(self._run)
        try:
            super().setup(config)
        except Exception:  # RLlib says no more than that an env runner does not answer
            self._refused = ray.get(handle.refused.remote(self._trial))
            if self._refused is None:
                raise
            self._set_up_metrics()  # Tune is still to be told
            return
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
        try:
            if self._refused:
                raise self._refused
            result = super().step()
        except Exception as error:
            return trainable.ended_by(error)
        return result | sink.tune_metrics(self._run, self._trial, self._budget)

    def training_step(self) -> None:
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            wanted = self.config.env_config["iteration_episodes"]
            sampled = self._sample(min(wanted, self._budget - self._finished))
            if not sampled:  # all are done, and only the sink has not said so yet
                return
            scores = keep_budget(sampled, self.config.env_config["budget_exact"])
            self._finished += len(sampled)
            best = max(range(len(scores)), key=lambda place: scores[place].key)  # of equal ones the first
            actions = torch.tensor(np.array(sampled[best].get_actions()))  # before RLlib adds a step
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            # RLlib shuffles minibatches with the global streams.
            stream = np.random.SeedSequence([self.config.seed, self._finished]).generate_state(1)
            update_global_seed_if_necessary("torch", int(stream[0]))
            learned = self.learner_group.update(
                episodes=sampled,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._finished * len(sampled[0])},
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
            self.metrics.aggregate(learned, key=LEARNER_RESULTS)
        if self._best is None or scores[best].key > self._best:
            self._best = scores[best].key
            self._on_learner(lambda learner: learner.module[DEFAULT_MODULE_ID].centre(actions))
        own = {"episodes": torch.tensor(self._finished), "best": torch.tensor(self._best, dtype=torch.float64)}
        state = safetensors.torch.save(self._on_learner(_state) | own)
        sink.find(self._run).save.remote(self._state_file, state)

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        self._finished, self._best = int(state.pop("episodes")), tuple(state.pop("best").tolist())
        self._on_learner(partial(_set_state, state=state))

    def _on_learner(self, function: Callable) -> Any:
        (result,) = self.learner_group.foreach_learner(function)
        return result.get()

    def _weights(self) -> dict[str, Any]:
        """Of the policy, as an env runner takes them."""
        part = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(components=[part], inference_only=True)
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE]

    def _sample(self, wanted: int) -> list[SingleAgentEpisode]:
        """The next `wanted` episodes, in their order.

        Raises:
            InputError, ScoringFailed: as `Runners.evaluate`.
        """
        if not wanted:
            return []
        if self.env_runner_group.num_remote_env_runners() == 0:
            runner = self.env_runner_group.local_env_runner
            parts = [_checked(episodes.attempt(runner, self._weights(), self._finished, wanted))]
        else:
            parts = self._sample_remotely(wanted, ray.put(self._weights()))
        return [episode for part in sorted(parts, key=lambda part: part.first) for episode in part.episodes]

    def _sample_remotely(self, wanted: int, weights: ray.ObjectRef) -> list[Part]:
        group, parts, probed = self.env_runner_group, [], time.monotonic()
        losses = Losses(self.config.num_env_runners)
        chunks = deque(shares(self._finished, wanted, self.config.num_env_runners, self.config.num_envs_per_env_runner))
        busy: dict[int, tuple[int, int]] = {}  # env runners, and the chunks that they are at
        while chunks or busy:
            for runner in sorted(set(group.healthy_env_runner_ids()).difference(busy)):
                if chunks:
                    busy[runner] = chunks.popleft()
                    first, count = busy[runner]
                    task = partial(episodes.attempt, weights=weights, first=first, count=count)
                    group.foreach_env_runner_async(task, tag="sample", remote_worker_ids=[runner])
            for runner, part in group.fetch_ready_async_reqs(tags="sample", timeout_seconds=POLL_SECONDS):
                parts.append(_checked(part))
                del busy[runner]
                losses.finished()
            healthy = group.healthy_env_runner_ids()
            for runner in set(busy).difference(healthy):
                chunks.appendleft(busy.pop(runner))
                losses.lost()
            if len(healthy) < self.config.num_env_runners and time.monotonic() - probed > PROBE_SECONDS:
                self.restore_env_runners(group)
                if not group.healthy_env_runner_ids():
                    self._check_that_one_may_come_back()
                probed = time.monotonic()
        return parts

    def _check_that_one_may_come_back(self) -> None:
        """Raises ScoringFailed, or what their constructor raised, if every env runner is dead for good."""
        answers = self.env_runner_group._worker_manager.foreach_actor(
            "ping", healthy_only=False, timeout_seconds=self.config.env_runner_health_probe_timeout_s
        )
        errors = [answer.get() for answer in answers if not answer.ok]
        dead = [error for error in errors if isinstance(error, ray.exceptions.ActorDiedError)]
        if len(dead) == self.config.num_env_runners:
            raise raised(dead[0]) or ScoringFailed(f"every env runner is dead ({dead[0]})")


class Learner(PPOTorchLearner):
    """RLlib's, with an Adam whose steps have the same bits on every CPU.

    torch's plain Adam takes its roots from MKL. MKL begins each at an estimate of the CPU (`rsqrtps`), which Intel and
    AMD make in their own ways, and a sixth of the roots ends a last bit off. The fused Adam takes exact roots.
    """

    def configure_optimizers_for_module(self, module_id, config=None) -> None:
        parameters = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, fused=True),
            params=parameters,
            lr_or_lr_schedule=config.lr,
        )


def _checked(part: Part) -> Part:
    if part.error:
        raise part.error
    return part


def keep_budget(sampled: Sequence[SingleAgentEpisode], budget: float | None) -> list[Score]:
    """Turns the last reward of episodes that exceed the budget, so that their returns become their `values`.

    Returns their scores.
    """
    objective = OBJECTIVES["return"]
    scores = [objective.score(episode.get_infos(-1), budget) for episode in sampled]
    for episode, score, value in zip(sampled, scores, values(scores), strict=True):
        if score.excess:
            rewards = episode.rewards.data.copy()  # an array from Ray's object store cannot be written
            rewards[-1] += value - score.objectives[0]
            episode.rewards.data = rewards
    return scores


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


def configure(
    calibration: Calibration,
    options: Options,
    *,
    run: str,
    seed: Any,
    budget: int,
    num_env_runners: int,
    budget_exact: float | None = None,
    needs: Needs = ONE_CORE,
) -> PPOConfig:
    """RLlib's configuration of a search; `seed` is a number, or Tune's grid of them.

    Source of the objective: Schulman et al., arXiv:1707.06347, eq. 7, without the KL term.
    """
    layers = len(calibration.layers)
    model = {
        "tmax": list(calibration.tmax),
        "start": [list(codes) for codes in calibration.start],
        "hidden": HIDDEN,
        "observations": [layer.observation.tolist() for layer in calibration.layers],
    }
    iteration = min(options.iteration_episodes, budget)
    steps = iteration * layers
    return (
        PPOConfig(algo_class=TapPPO)
        .environment(
            episodes.SearchEnv,
            env_config={
                "run": run,
                "budget": budget,
                "budget_exact": budget_exact,
                "iteration_episodes": iteration,
                "threads": needs.cores,
            },
        )
        .env_runners(
            env_runner_cls=episodes.SearchEnvRunner,
            num_env_runners=num_env_runners,
            num_cpus_per_env_runner=needs.cores,
            num_gpus_per_env_runner=needs.gpus,
            num_envs_per_env_runner=options.envs_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
            sample_timeout_s=None,
        )
        .learners(num_learners=0)
        .training(
            learner_class=Learner,
            train_batch_size_per_learner=steps,
            # RLlib's learner adds a last observation, without a loss, to each episode.
            minibatch_size=math.ceil((steps + iteration) / MINIBATCH_SHARE),
            num_epochs=EPOCHS,
            lr=options.lr,
            gamma=1.0,
            lambda_=1.0,
            clip_param=CLIP,
            vf_clip_param=math.inf,
            grad_clip=GRAD_CLIP,
            entropy_coeff=ENTROPY,
            use_kl_loss=False,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=CodePolicy, model_config=model))
        .fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1,
            env_runner_health_probe_timeout_s=0.5,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
