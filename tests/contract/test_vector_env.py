"""The vector environment is that many single ones, row by row."""

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


def test_step_before_reset(both):
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        both[0].step(np.ones((COUNT, 4)))


def test_made_by_gymnasium(evaluator):
    made = gym.make_vec("TAP-v0", 2, vectorization_mode="vector_entry_point", evaluator=evaluator)
    assert isinstance(made.unwrapped, TapVectorEnv)
    assert made.num_envs == 2
