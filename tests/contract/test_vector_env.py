"""The vector environment is that many single ones, row by row."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest

from approx_env import tap
from approx_env.env import TapEnv, TapVectorEnv

COUNT = 3


@pytest.fixture
def both(evaluator):
    """The vector environment, and Gymnasium's own over as many single ones."""
    mode = gym.vector.AutoresetMode.NEXT_STEP
    return TapVectorEnv(COUNT, evaluator), gym.vector.SyncVectorEnv(
        [lambda: TapEnv(evaluator)] * COUNT, autoreset_mode=mode
    )


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        return all(equal(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype


def test_rows_are_those_of_single_environments(both, evaluator):
    ours, plain = both
    assert ours.observation_space == plain.observation_space
    assert ours.action_space == plain.action_space
    assert ours.metadata["autoreset_mode"] == plain.metadata["autoreset_mode"]
    assert equal(ours.reset(seed=3), plain.reset(seed=3))
    generator, layers = np.random.default_rng(0), len(evaluator.layers)
    for step in range(2 * layers + 3):  # across two ends, and the steps that begin anew
        layer = step % (layers + 1)
        tmax = evaluator.calibration.tmax[min(layer, layers - 1)]
        actions = np.array([tap.random_codes(tmax, generator) for _ in range(COUNT)])
        found, expected = ours.step(actions), plain.step(actions)
        for name, one, other in zip(("observations", "rewards", "ended", "cut", "infos"), found, expected, strict=True):
            assert equal(one, other), (step, name)
        assert found[2].all() == (layer == layers - 1)


def test_infos_carry_tmax_of_the_layer_that_comes_next(both, evaluator):
    ours, _ = both
    _, infos = ours.reset()
    assert infos["tmax"].tolist() == [evaluator.calibration.tmax[0]] * COUNT
    *_, infos = ours.step(np.array([evaluator.calibration.quintile[0]] * COUNT))
    assert infos["tmax"].tolist() == [evaluator.calibration.tmax[1]] * COUNT


def test_one_invalid_action_changes_nothing(both, evaluator):
    ours, _ = both
    ours.reset()
    good = [evaluator.calibration.quintile[0]] * COUNT
    with pytest.raises(ValueError, match="^codes must satisfy"):
        ours.step(np.array([*good[:-1], (4, 3, 2, 1)]))
    with pytest.raises(ValueError, match=f"^{COUNT} configurations are in lockstep, and codes for 2 came$"):
        ours.step(np.array(good[:2]))
    rewards = ours.step(np.array(good))[1]
    assert (rewards == rewards[0]).all()


def test_steps_repeat_what_was_expected(both, evaluator, monkeypatch):
    ours, plain = both
    generator = np.random.default_rng(0)
    actions = np.array(
        [[tap.random_codes(tmax, generator) for _ in range(COUNT)] for tmax in evaluator.calibration.tmax]
    )
    plain.reset()
    expected = [plain.step(each) for each in actions]
    ours.expect(actions)
    ours.reset()
    monkeypatch.setattr(evaluator.engine, "advance", None)
    for each, before in zip(actions, expected, strict=True):
        assert all(equal(one, other) for one, other in zip(ours.step(each), before, strict=True))


def test_step_before_reset(both):
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        both[0].step(np.ones((COUNT, 4)))


def test_made_by_gymnasium(evaluator):
    made = gym.make_vec("TAP-v0", 2, vectorization_mode="vector_entry_point", evaluator=evaluator)
    assert isinstance(made.unwrapped, TapVectorEnv)
    assert made.num_envs == 2


# -- samples


def test_samples_are_valid_in_every_layer(both, evaluator):
    for env in both:
        env.reset(seed=1)
        env.action_space.seed(2)
        for tmax in evaluator.calibration.tmax:
            samples = [env.action_space.sample() for _ in range(20)]
            assert all(sample in env.action_space for sample in samples)
            assert not any(tap.problems(codes, tmax) for sample in samples for codes in sample)
            env.step(samples[0])
        env.step(env.action_space.sample())  # begins anew, and takes no actions
        env.step(env.action_space.sample())


def test_samples_follow_the_seed(both):
    def draw(space, seed) -> list:
        assert space.seed(seed) == [seed] or space.seed(seed) == seed
        return [space.sample().tolist() for _ in range(5)]

    both[0].reset()
    space = both[0].action_space
    first = draw(space, 11)
    assert draw(space, 11) == first != draw(space, 12)
    assert len({str(codes) for sample in first for codes in sample}) > COUNT  # each environment has its own


def test_samples_reach_every_code(both):
    """All quadruples below tmax = 5, which are five."""
    both[0].single_action_space.tmax = 5
    found = {tuple(codes) for _ in range(50) for codes in both[0].action_space.sample().tolist()}
    assert found == {(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5)}


def test_the_space_is_what_gymnasium_makes_of_a_batch(both):
    """Equal to the plain batch; parts are actions of one environment; copies and pickles are spaces as well."""
    space, single = both[0].action_space, both[0].single_action_space
    plain = gym.vector.utils.batch_space(gym.spaces.MultiDiscrete([256] * 4), COUNT)
    assert space == plain and space.dtype == plain.dtype
    assert isinstance(gym.vector.utils.batch_space(single, 2), gym.spaces.Box)
    single.tmax = 20
    rows = list(gym.vector.utils.iterate(space, space.sample()))
    assert len(rows) == COUNT and all(row in single for row in rows)
    empty = gym.vector.utils.create_empty_array(single, COUNT)
    assert gym.vector.utils.concatenate(single, rows, empty) in space
    for other in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert other == space
        assert not any(tap.problems(codes, 20) for codes in other.sample())


def test_samples_take_no_mask(both):
    with pytest.raises(ValueError, match=r"BatchedCodeSpace\.sample\(\) takes no mask"):
        both[0].action_space.sample(mask=())


def test_samples_of_gymnasiums_own_vector_environment(evaluator):
    made = gym.make_vec("TAP-v0", 2, vectorization_mode="sync", evaluator=evaluator)
    made.reset()
    for tmax in evaluator.calibration.tmax[:2]:
        actions = made.action_space.sample()
        assert not any(tap.problems(codes, tmax) for codes in actions)
        made.step(actions)
