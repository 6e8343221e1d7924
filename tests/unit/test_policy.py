"""The policy: valid by construction, a true distribution, ratio 1 on unchanged weights, seeded."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

from approx_env import tap
from search.policy import CodeDistribution, CodePolicy

TMAX = (15, 16, 35, 110, 255)
START = [tap.quintile(tmax) for tmax in TMAX]
SPACES = {
    "observation_space": gym.spaces.Box(0.0, 1.0, (4,), np.float32),
    "action_space": gym.spaces.MultiDiscrete([256] * 4),
}


def build(seed: int = 0, shake: float = 0.0, **known) -> CodePolicy:
    """A fresh policy; `shake` is the size of the noise that is put onto its weights, as after much training."""
    torch.manual_seed(seed)
    config = {"tmax": list(TMAX), "start": [list(codes) for codes in START], "hidden": 32} | known
    module = RLModuleSpec(module_class=CodePolicy, model_config=config, **SPACES).build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += shake * torch.randn(parameter.shape)
    return module


@pytest.fixture(params=[0.0, 0.3, 3.0], ids=["fresh", "trained", "wild"])
def policy(request) -> CodePolicy:
    return build(shake=request.param)


def observe(layers: list[int]) -> dict[str, torch.Tensor]:
    """A batch of observations, one for each of `layers`, with made-up histogram numbers."""
    depth = torch.tensor(layers) / (len(TMAX) - 1)
    numbers = torch.rand((len(layers), 3), generator=torch.Generator().manual_seed(7))
    return {Columns.OBS: torch.cat([depth[:, None], numbers], 1)}


def everywhere(count: int) -> list[int]:
    return [k % len(TMAX) for k in range(count)]


def explore(policy: CodePolicy, batch: dict, seed: int = 0) -> dict:
    torch.manual_seed(seed)
    return policy.forward_exploration(batch)


def distribution(policy: CodePolicy, batch: dict, actions: torch.Tensor) -> CodeDistribution:
    """The distribution that PPO's loss sees."""
    out = policy.forward_train(batch | {Columns.ACTIONS: actions})
    return policy.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])


def test_2000_drawn_actions_are_valid_for_their_layer(policy):
    layers = everywhere(2000)
    actions = explore(policy, observe(layers))[Columns.ACTIONS]
    assert actions.shape == (2000, 4)
    invalid = [tap.problems(codes, TMAX[layer]) for codes, layer in zip(actions.tolist(), layers, strict=True)]
    assert not any(invalid)


def test_the_most_probable_actions_are_valid(policy):
    layers = everywhere(10)
    actions = policy.forward_inference(observe(layers))[Columns.ACTIONS]
    assert not any(tap.problems(codes, TMAX[layer]) for codes, layer in zip(actions.tolist(), layers, strict=True))


def test_the_probability_ratio_is_exactly_1_on_unchanged_weights(policy):
    batch = observe(everywhere(2000))
    out = explore(policy, batch)
    again = distribution(policy, batch, out[Columns.ACTIONS]).logp(out[Columns.ACTIONS])
    assert torch.equal(again, out[Columns.ACTION_LOGP])
    assert torch.equal(torch.exp(again - out[Columns.ACTION_LOGP]), torch.ones(2000))


def test_the_ratio_is_1_when_steps_were_drawn_one_by_one_and_are_learnt_from_together(policy):
    """Other batch sizes round differently, by no more than float32 does."""
    layers = everywhere(50)
    batch = observe(layers)
    single = [explore(policy, {Columns.OBS: row[None]}, seed) for seed, row in enumerate(batch[Columns.OBS])]
    actions = torch.cat([out[Columns.ACTIONS] for out in single])
    then = torch.cat([out[Columns.ACTION_LOGP] for out in single])
    now = distribution(policy, batch, actions.to(torch.int32)).logp(actions.to(torch.int32))
    torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-4)


def test_probabilities_sum_to_1_over_all_valid_quadruples(policy):
    actions = torch.tensor(list(itertools.combinations(range(1, TMAX[0] + 1), 4)))  # ascending: (t1, v1, t2, v2)
    assert len(actions) == math.comb(15, 4) == 1365
    batch = {Columns.OBS: observe([0])[Columns.OBS].expand(1365, -1)}
    logp = distribution(policy, batch, actions).logp(actions)
    assert logp.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_what_is_drawn_follows_the_probabilities():
    """The share of each t1 among many draws is the probability that the first draw gives it."""
    policy, count = build(shake=0.3), 20_000
    batch = {Columns.OBS: observe([0])[Columns.OBS].expand(count, -1)}
    out = explore(policy, batch)
    drawn = torch.bincount(out[Columns.ACTIONS][:, 0], minlength=256) / count
    expected = torch.softmax(out[Columns.ACTION_DIST_INPUTS][0, :256], -1)
    assert (drawn - expected).abs().max() < 5 * math.sqrt(0.25 / count)


@pytest.mark.parametrize("seed", range(5))
def test_a_fresh_policy_prefers_the_start_configuration(seed):
    actions = build(seed).forward_inference(observe([0, 1, 2, 3, 4]))[Columns.ACTIONS]
    assert (actions - torch.tensor(START)).abs().max() <= 2


def test_draws_follow_the_seed():
    policy, batch = build(), observe(everywhere(100))
    first, other, second = (explore(policy, batch, seed)[Columns.ACTIONS] for seed in (1, 2, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(policy.forward_exploration(batch)[Columns.ACTIONS], first)  # the stream goes on


def run_episodes(policy: CodePolicy, known: torch.Tensor, uniforms: torch.Tensor) -> list[dict]:
    """Steps of episodes in lockstep; `uniforms` are what each draws with, (layers, episodes, 4)."""
    policy.uniforms = uniforms
    return [policy.forward_exploration({Columns.OBS: row.expand(uniforms.shape[1], -1)}) for row in known]


def test_an_episode_draws_with_its_own_numbers_alone():
    """With known observations one draw serves all layers; alone or in lockstep, an episode is the same."""
    known = observe(list(range(len(TMAX))))[Columns.OBS]
    policy = build(shake=0.3, observations=known.tolist())
    uniforms = torch.rand((len(TMAX), 3, 4), generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    together = run_episodes(policy, known, uniforms)
    for row, step, tmax in zip(known, together, TMAX, strict=True):
        assert not any(tap.problems(codes, tmax) for codes in step[Columns.ACTIONS].tolist())
        now = distribution(policy, {Columns.OBS: row.expand(3, -1)}, step[Columns.ACTIONS])
        torch.testing.assert_close(now.logp(step[Columns.ACTIONS]), step[Columns.ACTION_LOGP], rtol=1e-4, atol=1e-4)
    actions = torch.stack([step[Columns.ACTIONS] for step in together])
    assert not torch.equal(actions[:, 0], actions[:, 1])
    for episode in range(3):
        alone = run_episodes(policy, known, uniforms[:, episode : episode + 1])
        assert torch.equal(torch.stack([step[Columns.ACTIONS] for step in alone])[:, 0], actions[:, episode])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_ends_of_the_numbers_give_the_ends_of_the_interval(policy):
    observation = observe(everywhere(50))[Columns.OBS]
    for number in (0.0, 1 - 2**-24):
        actions = policy._draw(observation, torch.full((50, 4), number))[Columns.ACTIONS]
        for layer, codes in zip(everywhere(50), actions.tolist(), strict=True):
            assert tap.problems(codes, TMAX[layer]) == []


def test_what_is_not_known_beforehand_is_drawn_by_itself():
    known = observe(list(range(len(TMAX))))[Columns.OBS]
    policy = build(shake=0.3, observations=known.tolist())
    run_episodes(policy, known, torch.full((len(TMAX), 2, 4), 0.5))
    for other in (known[3].expand(5, -1), known[3].expand(2, -1) + 0.01):  # more episodes; something else is seen
        before = torch.random.get_rng_state()
        policy.forward_exploration({Columns.OBS: other})
        assert not torch.equal(torch.random.get_rng_state(), before)


def test_entropy_and_divergence(policy):
    batch = observe(everywhere(500))
    actions = explore(policy, batch)[Columns.ACTIONS]
    here = distribution(policy, batch, actions)
    other = distribution(build(seed=1), batch, actions)
    assert here.entropy().shape == here.kl(other).shape == (500,)
    assert (here.entropy() >= 0).all() and (here.entropy() <= 4 * math.log(256)).all()
    assert torch.equal(here.kl(here), torch.zeros(500))
    assert (here.kl(other) >= -1e-5).all() and torch.isfinite(here.kl(other)).all()


def test_entropy_of_a_known_distribution():
    """t1 one of two codes, v1 one of four, t2 and v2 certain: log 2 + log 4."""
    logits = torch.full((4, 256), -1e9)
    for draw, codes in enumerate(([1, 2], [3, 4, 5, 6], [9], [12])):
        logits[draw, codes] = 0.0
    known = CodeDistribution(logits=logits.flatten()[None])
    assert known.entropy().item() == pytest.approx(math.log(8))
    assert known.logp(torch.tensor([[1, 3, 9, 12]])).item() == pytest.approx(-math.log(8))


def test_gradients_are_finite_and_reach_every_weight(policy):
    batch = observe(everywhere(200))
    actions = explore(policy, batch)[Columns.ACTIONS]
    seen = distribution(policy, batch, actions)
    values = policy.compute_values(batch)
    assert values.shape == (200,)
    (seen.logp(actions).mean() + seen.entropy().mean() + values.square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_learning_moves_the_policy_towards_rewarded_codes():
    """A few steps of plain policy gradient on 'a high v2 of layer 4 is good' raise its mean."""
    policy, batch = build(), observe([4] * 256)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    means = []
    for step in range(8):
        actions = explore(policy, batch, step)[Columns.ACTIONS]
        reward = actions[:, 3].float()
        means.append(reward.mean().item())
        advantage = (reward - reward.mean()) / reward.std()
        optimizer.zero_grad()
        (-distribution(policy, batch, actions).logp(actions) * advantage).mean().backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
    assert means[-1] > means[0] + 20


def test_the_distribution_does_not_draw_by_itself():
    inputs = explore(build(), observe([0]))[Columns.ACTION_DIST_INPUTS]
    for draw in (CodeDistribution(logits=inputs).sample, CodeDistribution(logits=inputs).rsample):
        with pytest.raises(RuntimeError, match="CodePolicy"):
            draw()


def test_a_policy_can_be_stored_and_goes_on_the_same():
    policy, batch = build(seed=1, shake=0.3), observe(everywhere(20))
    copy = build(seed=2)
    copy.set_state(policy.get_state())
    outs = [explore(module, batch) for module in (policy, copy)]
    assert torch.equal(outs[0][Columns.ACTION_LOGP], outs[1][Columns.ACTION_LOGP])
