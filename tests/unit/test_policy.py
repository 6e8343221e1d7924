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
from search.algorithms.ppo.policy import LAYER, LIKELIEST, MOVES, MOVES_RANGE, WIDTH, CodeDistribution, CodePolicy

TMAX = (15, 16, 35, 110, 255)
START = [tap.quintile(tmax) for tmax in TMAX]
WITH_TMAX = [(*codes, tmax) for codes, tmax in zip(START, TMAX, strict=True)]


def build(seed: int = 0, shake: float = 0.0, start: list[tuple] = START) -> CodePolicy:
    """A fresh policy; `shake` is the size of the noise that is put onto its weights, as after much training."""
    torch.manual_seed(seed)
    numbers = torch.rand((len(TMAX), 3), generator=torch.Generator().manual_seed(7))
    depth = torch.arange(len(TMAX)) / (len(TMAX) - 1)
    config = {
        "tmax": list(TMAX),
        "start": [list(codes) for codes in start],
        "observations": torch.cat([depth[:, None], numbers], 1).tolist(),
        "hidden": 32,
    }
    spaces = {
        "observation_space": gym.spaces.Box(0.0, 1.0, (4,), np.float32),
        "action_space": gym.spaces.MultiDiscrete([256] * len(start[0])),
    }
    module = RLModuleSpec(module_class=CodePolicy, model_config=config, **spaces).build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += shake * torch.randn(parameter.shape)
    return module


@pytest.fixture(params=[START, WITH_TMAX], ids=["codes", "codes and tmax"])
def start(request) -> list[tuple]:
    return request.param


@pytest.fixture(params=[0.0, 0.3, 3.0], ids=["fresh", "trained", "wild"])
def policy(request, start) -> CodePolicy:
    return build(shake=request.param, start=start)


def numbers(episodes: int, seed: int = 0, draws: int = 4) -> torch.Tensor:
    """What episodes are drawn with: `(layers, episodes, draws)`."""
    return torch.rand((len(TMAX), episodes, draws), generator=torch.Generator().manual_seed(seed))


def learn_from(policy: CodePolicy, drawn: dict) -> dict[str, torch.Tensor]:
    """The batch that PPO learns from: one row for each step of the drawn episodes."""
    observations = policy.observations.unsqueeze(1).expand(*drawn[LAYER].shape, -1)
    return {Columns.OBS: observations.flatten(0, 1)} | {name: value.flatten(0, 1) for name, value in drawn.items()}


def at(policy: CodePolicy, layer: int, count: int) -> dict[str, torch.Tensor]:
    """A batch that sees the same layer `count` times."""
    return {Columns.OBS: policy.observations[layer].expand(count, -1), LAYER: torch.full((count,), layer)}


def distribution(policy: CodePolicy, batch: dict) -> CodeDistribution:
    """The distribution that PPO's loss sees."""
    out = policy.forward_train(batch)
    return policy.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])


def invalid(actions: torch.Tensor) -> list[str]:
    """What is wrong with actions `(layers, episodes, 4)`."""
    return [
        problem
        for tmax, layer in zip(TMAX, actions.tolist(), strict=True)
        for codes in layer
        for problem in tap.problems(codes, tmax)
    ]


def test_the_actions_of_500_drawn_episodes_are_valid_for_their_layers(policy):
    drawn = policy.draw(numbers(500, draws=policy.draws))
    assert drawn[Columns.ACTIONS].shape == (len(TMAX), 500, policy.draws)
    assert drawn[LAYER].tolist() == [[layer] * 500 for layer in range(len(TMAX))]
    assert invalid(drawn[Columns.ACTIONS]) == []


def test_the_probability_ratio_is_exactly_1_on_unchanged_weights(policy):
    drawn = policy.draw(numbers(400, draws=policy.draws))
    batch = learn_from(policy, drawn)
    again = distribution(policy, batch).logp(batch[Columns.ACTIONS])
    assert torch.equal(again, batch[Columns.ACTION_LOGP])
    assert torch.equal(torch.exp(again - batch[Columns.ACTION_LOGP]), torch.ones(2000))


def test_the_ratio_is_1_when_episodes_were_drawn_one_by_one_and_are_learnt_from_together(policy):
    """Other batch sizes round differently, by no more than float32 does."""
    uniforms = numbers(10, draws=policy.draws)
    single = [policy.draw(uniforms[:, k : k + 1]) for k in range(10)]
    batch = learn_from(policy, {name: torch.cat([one[name] for one in single], 1) for name in single[0]})
    batch[Columns.ACTIONS] = batch[Columns.ACTIONS].to(torch.int32)
    now = distribution(policy, batch).logp(batch[Columns.ACTIONS])
    torch.testing.assert_close(now, batch[Columns.ACTION_LOGP], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shake", [0.0, 0.3, 3.0])
def test_probabilities_sum_to_1_over_all_valid_quadruples(shake):
    policy = build(shake=shake)
    actions = torch.tensor(list(itertools.combinations(range(1, TMAX[0] + 1), 4)))  # ascending: (t1, v1, t2, v2)
    assert len(actions) == math.comb(15, 4) == 1365
    logp = distribution(policy, at(policy, 0, 1365) | {Columns.ACTIONS: actions}).logp(actions)
    assert logp.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shake", [0.0, 0.3, 3.0])
def test_with_tmax_probabilities_sum_to_1_under_each_tmax_and_over_all_of_them(shake):
    policy = build(shake=shake, start=WITH_TMAX)
    quadruples = list(itertools.combinations(range(1, 13), 4))
    actions = torch.tensor([(*codes, 12) for codes in quadruples])
    seen = distribution(policy, at(policy, 0, len(actions)) | {Columns.ACTIONS: actions})
    of_tmax = seen._log[0, 4]  # the same for all, for it is drawn first
    assert of_tmax.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (of_tmax.isfinite() & (of_tmax > -1e8)).nonzero().flatten().tolist() == list(range(4, 256))
    assert (seen.logp(actions) - of_tmax[12]).double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_what_is_drawn_follows_the_probabilities():
    """The share of each t1 among many draws is the probability that the first draw gives it."""
    policy, count = build(shake=0.3), 4000
    drawn = policy.draw(numbers(count))
    shares = torch.bincount(drawn[Columns.ACTIONS][0, :, 0], minlength=256) / count
    expected = torch.softmax(drawn[Columns.ACTION_DIST_INPUTS][0, 0, :256], -1)
    assert (shares - expected).abs().max() < 5 * math.sqrt(0.25 / count)


def test_the_median_of_any_policy_is_the_incumbent(policy, start):
    median = torch.full((len(TMAX), 1, policy.draws), 0.5)
    assert torch.equal(policy.draw(median)[Columns.ACTIONS][:, 0], torch.tensor(start))
    other = policy.draw(numbers(1, seed=5, draws=policy.draws))[Columns.ACTIONS][:, 0]
    policy.centre(other)
    assert torch.equal(policy.draw(median)[Columns.ACTIONS][:, 0], other)


def moved(policy: CodePolicy, start: list[tuple], episodes: int = 2000) -> torch.Tensor:
    """Which codes differ from the incumbent's: `(layers, episodes, draws)`."""
    actions = policy.draw(numbers(episodes, draws=policy.draws))[Columns.ACTIONS]
    return actions != torch.tensor(start).unsqueeze(1)


def likely(times: float = 1.0) -> float:
    """How many codes an episode moves."""
    return min(times * MOVES, LIKELIEST * np.size(START))


def test_an_episode_of_a_fresh_policy_moves_some_codes():
    """A code that others push aside moves too, so that there are some more."""
    count = moved(build(), START).sum((0, 2)).double()
    assert 0.9 * likely() < count.mean() < 1.4 * likely() and (count == 0).double().mean() < 0.1


def test_no_policy_freezes_or_draws_all_anew():
    for bias, times in zip((50.0, -50.0), MOVES_RANGE, strict=True):
        policy = build()
        with torch.no_grad():
            policy.heads.bias[:, 2] = bias
        count = moved(policy, START).sum((0, 2)).double().mean().item()
        assert count == pytest.approx(likely(times), rel=0.45)


def test_a_code_moves_by_the_width_as_a_share_of_tmax():
    policy = build()
    actions = policy.draw(numbers(4000))[Columns.ACTIONS].double()
    of_t1 = actions[4, :, 0] - START[4][0]
    assert of_t1[of_t1 != 0].std().item() == pytest.approx(WIDTH * 255, rel=0.1)


def test_where_tmax_moves_the_others_keep_their_shares_of_it():
    actions = build(start=WITH_TMAX).draw(numbers(4000, draws=5))[Columns.ACTIONS].double()
    far = (actions[3, :, 4] - TMAX[3]).abs() > WIDTH * TMAX[3]
    assert 0.01 < far.double().mean() < 0.2
    shares = actions[3, far, 3] / actions[3, far, 4]
    assert shares.median().item() == pytest.approx(START[3][3] / TMAX[3], abs=0.01)


def test_an_episode_draws_with_its_own_numbers_alone():
    """Alone or in lockstep it is the same, and torch's global stream is left as it was."""
    policy, uniforms = build(shake=0.3), numbers(3)
    before = torch.random.get_rng_state()
    actions = policy.draw(uniforms)[Columns.ACTIONS]
    assert not torch.equal(actions[:, 0], actions[:, 1])
    for episode in range(3):
        alone = policy.draw(uniforms[:, episode : episode + 1])[Columns.ACTIONS]
        assert torch.equal(alone[:, 0], actions[:, episode])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_layer_is_what_the_batch_says_it_is():
    """Two layers that look the same keep their own limits."""
    policy = build()
    policy.observations[:] = policy.observations[0]
    actions = policy.draw(numbers(50))[Columns.ACTIONS]
    assert invalid(actions) == []
    assert (actions[4, :, 3] > 100).all()


def test_the_ends_of_the_numbers_give_the_ends_of_the_interval(policy):
    for number in (0.0, 1 - 2**-24):
        assert invalid(policy.draw(torch.full((len(TMAX), 2, policy.draws), number))[Columns.ACTIONS]) == []


def test_entropy_and_divergence(policy, start):
    batch = learn_from(policy, policy.draw(numbers(100, draws=policy.draws)))
    here, other = distribution(policy, batch), distribution(build(seed=1, start=start), batch)
    assert here.entropy().shape == here.kl(other).shape == (500,)
    assert (here.entropy() >= 0).all() and (here.entropy() <= policy.draws * math.log(256)).all()
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
    batch = learn_from(policy, policy.draw(numbers(40, draws=policy.draws)))
    seen = distribution(policy, batch)
    values = policy.compute_values(batch)
    assert values.shape == (200,)
    logp = seen.logp(batch[Columns.ACTIONS])
    (logp.mean() + seen.entropy().mean() + values.square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_learning_moves_the_policy_towards_rewarded_codes():
    """A few steps of plain policy gradient on 'a high v2 of layer 4 is good' raise its mean: it moves up, and oftener."""
    policy = build()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    means = []
    for step in range(8):
        actions = policy.draw(numbers(256, step))[Columns.ACTIONS][4]
        reward = actions[:, 3].float()
        means.append(reward.mean().item())
        advantage = (reward - reward.mean()) / reward.std()
        optimizer.zero_grad()
        seen = distribution(policy, at(policy, 4, 256) | {Columns.ACTIONS: actions})
        (-seen.logp(actions) * advantage).mean().backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
    assert means[-1] > means[0] + 5


def test_the_distribution_does_not_draw_by_itself():
    inputs = build().draw(numbers(1))[Columns.ACTION_DIST_INPUTS]
    for draw in (CodeDistribution(logits=inputs).sample, CodeDistribution(logits=inputs).rsample):
        with pytest.raises(RuntimeError, match="CodePolicy"):
            draw()


def test_a_policy_can_be_stored_and_goes_on_the_same(start):
    policy, copy = build(seed=1, shake=0.3, start=start), build(seed=2, start=start)
    copy.set_state(policy.get_state())
    drawn = numbers(20, draws=policy.draws)
    first, second = (module.draw(drawn)[Columns.ACTION_LOGP] for module in (policy, copy))
    assert torch.equal(first, second)
