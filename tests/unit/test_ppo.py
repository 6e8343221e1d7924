"""How an iteration is shared out among env runners, what they do with it, and what happens when they fail."""

from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from search.algorithms.ppo import episodes, learner
from search.algorithms.ppo.policy import LAYER
from search.results import sink
from search.stages.trainable import FAILURE
from search.workers.losses import ScoringFailed


@pytest.mark.parametrize("runners", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("wanted", [0, 1, 5, 32, 100])
@pytest.mark.parametrize("together", [1, 3])
def test_chunks_cover_the_episodes_once_and_in_order(wanted, runners, together):
    chunks = list(learner.shares(7, wanted, runners, together))
    assert sum(count for _, count in chunks) == wanted
    assert [first for first, _ in chunks] == [7 + sum(count for _, count in chunks[:k]) for k in range(len(chunks))]
    assert all(count > 0 for _, count in chunks)
    assert all(count % together == 0 for _, count in chunks[:-1])


def test_one_runner_gets_all_at_once():
    assert list(learner.shares(0, 32, 1, 1)) == [(0, 32)]


def test_several_runners_get_most_of_their_share_and_then_less():
    chunks = [count for _, count in learner.shares(0, 32, 2, 1)]
    assert chunks == [12, 12, 2, 2, 2, 2]
    assert all(more >= less for more, less in pairwise(chunks))


class Env:
    """Three episodes of two layers in lockstep, whose rewards say what was done."""

    num_envs = 3
    single_observation_space = gym.spaces.Box(0.0, 10.0, (1,))
    single_action_space = gym.spaces.MultiDiscrete([256] * 4)

    @property
    def unwrapped(self):
        return self

    def expect(self, actions):
        self.expected = actions

    def reset(self):
        self.step_ = 0
        return np.zeros((3, 1), np.float32), [{}] * 3

    def step(self, actions):
        assert np.array_equal(actions, self.expected[self.step_])
        self.step_ += 1
        ended = np.full(3, self.step_ == 2)
        rewards = np.asarray(actions).sum(1).astype(float)
        return np.full((3, 1), self.step_, np.float32), rewards, ended, np.zeros(3, bool), [{"step": self.step_}] * 3


class Policy:
    """Draws actions that are 256 times the numbers."""

    limits, draws = (255, 255), 4

    def draw(self, uniforms):
        layers = torch.arange(2)[:, None].expand(uniforms.shape[:2])
        return {Columns.ACTIONS: (256 * uniforms).long(), Columns.ACTION_LOGP: uniforms.sum(-1), LAYER: layers}


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[str, int]]:
    """Ids and numbers of the episodes that reach the sink."""
    rows = []
    recorder = SimpleNamespace(add=lambda name, number, info: rows.append((name, number)), wait=lambda: None)
    monkeypatch.setattr(episodes.sink, "Recorder", lambda run, algorithm, seed: recorder)
    return rows


def env_runner(**more) -> SimpleNamespace:
    config = SimpleNamespace(seed=5, env_config={"run": "r"})
    known = {"env": Env(), "module": Policy(), "config": config, "num_envs": 3, "set_state": Mock()}
    return SimpleNamespace(**known | more)


def actions(part: episodes.Part) -> list:
    return [episode.get_actions().tolist() for episode in part.episodes]


def test_an_env_runner_runs_the_episodes_that_it_is_told_with_the_weights_that_come_with_them(recorded):
    runner = env_runner()
    part = episodes.attempt(runner, "weights", 7, 4)
    runner.set_state.assert_called_once_with({"rl_module": "weights"})
    assert (part.first, len(part.episodes), part.error) == (7, 4, None)
    assert recorded == [(f"ppo-seed5-{number}", number) for number in (7, 8, 9, 10)]
    for episode in part.episodes:
        assert episode.is_terminated and len(episode) == 2
        assert episode.get_extra_model_outputs(LAYER).tolist() == [0, 1]
        assert episode.get_rewards().tolist() == episode.get_actions().sum(1).tolist()


def test_an_episode_depends_on_its_number_and_not_on_those_beside_it(recorded):
    together = actions(episodes.attempt(env_runner(), "weights", 0, 6))
    assert actions(episodes.attempt(env_runner(), "weights", 4, 2)) == together[4:]
    assert together[0] != together[1]


def test_the_first_episode_of_a_search_is_the_incumbent(recorded):
    first, second = actions(episodes.attempt(env_runner(), "weights", 0, 2))
    assert first == [[128] * 4] * 2 != second


def test_an_exception_in_an_env_runner_comes_back_with_its_text(recorded):
    part = episodes.attempt(env_runner(module=None), "weights", 0, 3)
    assert isinstance(part.error, ScoringFailed)
    assert "AttributeError: 'NoneType' object has no attribute 'limits'" in str(part.error)
    assert "in draw" in str(part.error)  # where it was


def test_a_lost_object_is_left_to_rllib_which_starts_the_env_runner_again():
    lost = env_runner(set_state=Mock(side_effect=ray.exceptions.ObjectLostError("0" * 56, b"", "")))
    with pytest.raises(ray.exceptions.ObjectLostError):
        episodes.attempt(lost, "weights", 0, 3)


class Group:
    """Two env runners; `answer(number, first)` is a part, or None where the runner dies."""

    def __init__(self, answer):
        self._answer, self.healthy, self._parts, self.asked = answer, {1, 2}, [], []
        self._worker_manager = self

    def healthy_env_runner_ids(self):
        return sorted(self.healthy)

    def foreach_env_runner_async(self, task, tag, remote_worker_ids):
        (number,) = remote_worker_ids
        first, count = task.keywords["first"], task.keywords["count"]
        self.asked.append((first, count))
        part = self._answer(number, first)
        if part is None:
            self.healthy.discard(number)
        else:
            self._parts.append((number, part))

    def fetch_ready_async_reqs(self, tags, timeout_seconds):
        parts, self._parts = self._parts, []
        return parts

    def foreach_actor(self, *arguments, **keywords):
        return []


def search_over(group, restores: bool = True) -> learner.TapPPO:
    search = object.__new__(learner.TapPPO)
    search.config = SimpleNamespace(num_env_runners=2, num_envs_per_env_runner=1, env_runner_health_probe_timeout_s=0)
    search.env_runner_group, search._finished = group, 0
    search.restore_env_runners = lambda group: group.healthy.update({1, 2}) if restores else None
    return search


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(learner, "PROBE_SECONDS", 0)


def test_what_an_env_runner_raised_is_raised_in_the_driver():
    group = Group(lambda number, first: episodes.Part(first, [], ScoringFailed("a bug")))
    with pytest.raises(ScoringFailed, match="a bug"):
        search_over(group)._sample_remotely(32, "weights")
    assert len(group.asked) <= 2


def test_what_a_lost_env_runner_had_begun_is_done_again(impatient):
    losses = iter([None, None])
    group = Group(lambda number, first: next(losses, episodes.Part(first, [])))
    parts = search_over(group)._sample_remotely(32, "weights")
    assert sorted(part.first for part in parts) == [first for first, _ in learner.shares(0, 32, 2, 1)]


def test_env_runners_that_always_die_are_given_up(impatient):
    group = Group(lambda number, first: None)
    with pytest.raises(ScoringFailed, match="lost 11 times in a row"):
        search_over(group)._sample_remotely(32, "weights")


def test_env_runners_that_can_never_come_back_are_given_up(impatient):
    group = Group(lambda number, first: None)
    dead = SimpleNamespace(ok=False, get=lambda: ray.exceptions.ActorDiedError())
    group.foreach_actor = lambda *arguments, **keywords: [dead, dead]
    with pytest.raises(ScoringFailed, match="every env runner is dead"):
        search_over(group, restores=False)._sample_remotely(32, "weights")


def played(rewards: list[float], **info) -> SingleAgentEpisode:
    """An episode with these rewards, whose last info is an outcome."""
    episode = SingleAgentEpisode()
    episode.add_env_reset(np.zeros(1), {})
    for step, reward in enumerate(rewards, 1):
        last = step == len(rewards)
        episode.add_env_step(np.zeros(1), 0, reward, {"return": sum(rewards)} | info if last else {}, terminated=last)
    made = episode.to_numpy()
    made.rewards.data.setflags(write=False)  # as it comes from Ray's object store
    return made


def test_episodes_that_exceed_the_budget_have_less_return_than_those_that_keep_it():
    sampled = [played([-0.25, 1.0], mac_exact_all=0.5), played([-0.5, 0.75], mac_exact_all=0.25),
               played([-0.5, 1.5], mac_exact_all=0.625), played([0.0, 2.0], mac_exact_all=1.0)]  # fmt: skip
    learner.keep_budget(sampled, 0.5)
    assert [episode.get_rewards().tolist() for episode in sampled[:2]] == [[-0.25, 1.0], [-0.5, 0.75]]
    assert [episode.get_return() for episode in sampled] == [0.75, 0.25, 0.25 - 0.125, 0.25 - 0.5]
    assert [episode.get_rewards(0) for episode in sampled[2:]] == [-0.5, 0.0]  # of the other steps


def test_without_a_budget_rewards_stay_as_they_are():
    sampled = [played([-0.25, 1.0], mac_exact_all=0.5)]
    learner.keep_budget(sampled, None)
    assert sampled[0].get_rewards().tolist() == [-0.25, 1.0]


class Starts:
    """A sink that counts env runners that start, and refuses the third."""

    def __init__(self, monkeypatch):
        self.count, self.reasons = 0, {}
        self.starting, self.refuse, self.refused = (
            SimpleNamespace(remote=method) for method in (self._starting, self.reasons.__setitem__, self.reasons.get)
        )
        monkeypatch.setattr(sink, "find", lambda run: self)
        monkeypatch.setattr(ray, "get", lambda answer: answer)

    def _starting(self, trial: str, count: int) -> None:
        assert (trial, count) == ("ppo-seed5", 2)
        self.count += 1
        if self.count > 2:
            raise ScoringFailed("lost too often")


def start(index: int) -> episodes.SearchEnvRunner:
    config = SimpleNamespace(env_config={"run": "r"}, seed=5, num_env_runners=2)
    return episodes.SearchEnvRunner(config=config, worker_index=index)


def test_an_env_runner_that_starts_is_counted_and_may_be_refused(monkeypatch):
    starts = Starts(monkeypatch)
    monkeypatch.setattr(episodes.SingleAgentEnvRunner, "__init__", lambda self, **arguments: None)
    for index in (0, 1, 0, 2, 0):  # 0 is in the search's own process
        start(index)
    with pytest.raises(ScoringFailed, match="lost too often"):
        start(1)
    assert str(starts.reasons["ppo-seed5"]) == "lost too often"


def test_what_keeps_an_env_runner_from_starting_is_told(monkeypatch):
    starts = Starts(monkeypatch)
    monkeypatch.setattr(episodes.SingleAgentEnvRunner, "__init__", Mock(side_effect=ValueError("no such engine")))
    with pytest.raises(ScoringFailed, match="ValueError: no such engine"):
        start(0)
    assert "no such engine" in str(starts.reasons["ppo-seed5"])


def set_up(monkeypatch, reason: Exception | None) -> learner.TapPPO:
    """A search whose set-up fails, as RLlib's does without an env runner."""
    Starts(monkeypatch).reasons["ppo-seed5"] = reason
    monkeypatch.setattr(learner.PPO, "setup", Mock(side_effect=IndexError("list index out of range")))
    search = object.__new__(learner.TapPPO)
    search.setup({"env_config": {"run": "r", "budget": 4}, "seed": 5})
    return search


def test_a_search_whose_env_runners_cannot_start_ends_with_the_reason(monkeypatch):
    reason = ScoringFailed("lost too often")
    assert set_up(monkeypatch, reason).step() == {"done": True, FAILURE: reason}


def test_a_set_up_that_fails_otherwise_is_left_to_tune_which_tries_again(monkeypatch):
    with pytest.raises(IndexError):
        set_up(monkeypatch, None)
