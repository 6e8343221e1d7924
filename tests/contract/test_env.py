"""What every environment promises, on both shipped teachers."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from approx_env import data, tap
from approx_env import env as environment
from approx_env.engines.portable import PortableEngine
from approx_env.engines.vector import convolution
from approx_env.env import TapEnv, TapVectorEnv
from approx_env.errors import InputError

OUTCOME = {
    *("codes", "accuracy", "soft_accuracy", "drop_points", "kd", "at", "return", "layer_shares", "shares"),
    *("drop_error_points", "layer_zero_natural", "zero_natural", "covered", "relative_energy_sites", "relative_energy"),
    "mac_exact_all",
}


@pytest.fixture
def env(evaluator) -> TapEnv:
    return TapEnv(evaluator)


def play(env: gym.Env, configuration, seed=None):
    """One episode: its rewards in order, observations and infos."""
    observation, info = env.reset(seed=seed)
    rewards, observations, infos = [], [observation], [info]
    for position, codes in enumerate(configuration):
        observation, reward, terminated, truncated, info = env.step(np.array(codes))
        assert terminated == (position == len(configuration) - 1)
        assert truncated is False
        rewards.append(reward)
        observations.append(observation)
        infos.append(info)
    return rewards, observations, infos


def total(rewards) -> float:
    """The sum in order; the built-in `sum` compensates rounding from Python 3.12 on."""
    result = 0.0
    for reward in rewards:
        result += reward
    return result


def random_configuration(env: TapEnv, seed: int):
    generator = np.random.default_rng(seed)
    return [tap.random_codes(tmax, generator) for tmax in env.evaluator.calibration.tmax]


# -- Gymnasium


def test_an_environment_with_all_sites():
    """A step for every layer, in both environments, and the evaluator's score."""
    made = gym.make("TAP-v0", model="squeezenet_compact", sites="all").unwrapped
    evaluator = made.evaluator
    assert evaluator.layers == ("conv1", *(f"fire{k}{part}" for k in range(2, 6) for part in ("_squeeze", "")))
    check_env(made, skip_render_check=True)
    configurations = [random_configuration(made, seed) for seed in (0, 1)]
    vector = gym.make_vec("TAP-v0", num_envs=2, evaluator=evaluator, vectorization_mode="vector_entry_point")
    vector.reset()
    together = [vector.step(np.array(codes))[1] for codes in zip(*configurations, strict=True)]
    for k, configuration in enumerate(configurations):
        rewards, observations, infos = play(made, configuration)
        score = evaluator.evaluate(configuration)
        assert total(rewards) == infos[-1]["return"] == score.return_
        assert rewards == [step[k] for step in together]
        assert infos[-1]["layer_shares"].shape == (9, 4)
        depths = [observation[0] for observation in observations[:-1]]
        assert depths == [np.float32(place / 8) for place in range(9)]


def test_an_environment_whose_actions_have_tmax():
    """An action's last code is its tmax, in both environments; the evaluator scores it so."""
    made = gym.make("TAP-v0", model="squeezenet_compact", search_tmax=True).unwrapped
    evaluator = made.evaluator
    assert made.action_space.nvec.tolist() == [256] * 5
    check_env(made, skip_render_check=True)
    made.action_space.seed(1)
    configurations = [[made.action_space.sample() for _ in evaluator.layers] for _ in range(2)]
    configurations.append(evaluator.calibration.quintile)
    vector = gym.make_vec("TAP-v0", num_envs=3, evaluator=evaluator, vectorization_mode="vector_entry_point")
    assert vector.action_space.shape == (3, 5)
    vector.reset(seed=0)
    assert not any(tap.problems(codes, 4) for codes in vector.action_space.sample())
    together = [vector.step(np.array(codes))[1] for codes in zip(*configurations, strict=True)]
    for k, configuration in enumerate(configurations):
        rewards, _, infos = play(made, configuration)
        assert total(rewards) == infos[-1]["return"] == evaluator.evaluate(configuration).return_
        assert rewards == [step[k] for step in together]
        assert infos[-1]["codes"].tolist() == np.array(configuration).tolist()
    made.reset()
    with pytest.raises(ValueError, match=r"^codes must be five integers \(t1, v1, t2, v2, tmax\), got "):
        made.step(np.array([1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"^codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = 8, got .* v2=9$"):
        made.step(np.array([1, 2, 3, 9, 8]))


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_gymnasium_check_env(evaluator):
    made = gym.make("TAP-v0", evaluator=evaluator)
    assert isinstance(made.unwrapped, TapEnv)
    check_env(made)


@pytest.mark.filterwarnings("error")
def test_gymnasium_check_env_unwrapped_without_a_warning(evaluator):
    check_env(gym.make("TAP-v0", evaluator=evaluator).unwrapped)


def test_spaces(env):
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (4,), np.float32)
    assert env.action_space.nvec.tolist() == [256] * 4


def test_whole_episode_through_gym_make(evaluator):
    made = gym.make("TAP-v0", evaluator=evaluator)
    quintile = evaluator.calibration.quintile
    rewards, _, infos = play(made, quintile)
    assert total(rewards) == infos[-1]["return"] == evaluator.evaluate(quintile).return_


def test_shipped_model_by_name():
    env = gym.make("TAP-v0", model="alexnet").unwrapped
    assert env.evaluator.network.model == "alexnet"
    assert len(env.evaluator.labels) == 256


@pytest.fixture
def few_images(monkeypatch, digits):
    """The shipped problem with 8 images to search on."""
    few = replace(digits, labels=digits.labels | {"search": digits.labels["search"][:8]})
    monkeypatch.setattr(data, "load", lambda name: few)
    monkeypatch.setattr(environment, "CALIBRATION_BATCHES", 1)


@pytest.mark.parametrize("vector", [False, True])
def test_made_where_the_fast_engine_cannot_run(few_images, monkeypatch, capsys, vector):
    """The portable engine scores the same, and a line says so."""

    def make(**options) -> TapEnv | TapVectorEnv:
        if vector:
            return gym.make_vec("TAP-v0", 2, vectorization_mode="vector_entry_point", **options).unwrapped
        return gym.make("TAP-v0", **options).unwrapped

    usual = make(model="alexnet")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(convolution, "available", lambda: ())
    env = make(model="alexnet")
    note = "this CPU has no AVX2: the portable engine scores, slowly (engine='portable')\n"
    assert capsys.readouterr().err == note
    assert isinstance(env.evaluator.engine, PortableEngine)
    quintile = usual.evaluator.calibration.quintile
    assert env.evaluator.calibration.quintile == quintile
    assert env.evaluator.evaluate(quintile).return_ == usual.evaluator.evaluate(quintile).return_


def test_the_engine_can_be_chosen(few_images, monkeypatch, capsys):
    env = gym.make("TAP-v0", model="alexnet", engine="portable").unwrapped
    assert isinstance(env.evaluator.engine, PortableEngine)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(convolution, "available", lambda: ())
    with pytest.raises(InputError, match="--engine vector needs an x86 CPU with AVX2"):
        gym.make("TAP-v0", model="alexnet", engine="vector")


# -- observations


def test_observations_follow_their_formula(env):
    _, observations, _ = play(env, env.evaluator.calibration.quintile)
    layers = env.evaluator.calibration.layers
    codes = np.arange(256)
    for i, observation in enumerate(observations[:-1]):
        histogram = layers[i].histogram
        every = np.repeat(codes, histogram)
        ordered = every[-(-9 * len(every) // 10) - 1]  # nine tenths do not exceed it
        expected = [i / (len(layers) - 1), every.mean() / 255, every.std() / 128, ordered / 255]
        assert observation == pytest.approx(expected, rel=1e-5)
        assert observation in env.observation_space
    assert np.array_equal(observations[-1], observations[-2])  # the last layer's again


def test_observations_do_not_depend_on_the_actions(env):
    first = play(env, random_configuration(env, 0), seed=1)[1]
    second = play(env, random_configuration(env, 1), seed=2)[1]
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_observations_are_the_callers_own(env):
    observation, _ = env.reset()
    observation[:] = 7
    assert env.reset()[0] in env.observation_space


# -- rewards and outcome


def test_rewards_add_up_to_the_evaluators_return_exactly(env):
    for configuration in (env.evaluator.calibration.quintile, *(random_configuration(env, seed) for seed in range(3))):
        rewards, _, infos = play(env, configuration)
        assert total(rewards) == env.evaluator.evaluate(configuration).return_ == infos[-1]["return"]


def test_rewards_are_plain_floats(env):
    rewards, _, _ = play(env, env.evaluator.calibration.quintile)
    assert all(type(reward) is float for reward in rewards)


def test_infos(env):
    configuration = random_configuration(env, 5)
    _, _, infos = play(env, configuration)
    tmax = env.evaluator.calibration.tmax
    assert [info["tmax"] for info in infos] == [*tmax, tmax[-1]]
    assert all(set(info) == {"tmax"} for info in infos[:-1])
    last, score = infos[-1], env.evaluator.evaluate(configuration)
    assert set(last) == OUTCOME | {"tmax"}
    assert last["codes"].tolist() == [list(codes) for codes in configuration]
    assert last["codes"].dtype == np.int64
    for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at"):
        assert last[name] == getattr(score, name)
    assert np.array_equal(last["layer_shares"], score.layer_shares)
    assert np.array_equal(last["shares"], score.shares)
    assert last["layer_shares"].shape == (len(tmax), 4)


# -- actions


def test_samples_are_valid_for_the_layer_that_comes_next(env):
    for seed in range(2):
        _, info = env.reset()
        env.action_space.seed(seed)
        for tmax in env.evaluator.calibration.tmax:
            assert info["tmax"] == tmax
            samples = [env.action_space.sample() for _ in range(50)]
            assert all(tap.problems(sample, tmax) == [] and sample in env.action_space for sample in samples)
            info = env.step(samples[0])[-1]


def test_samples_follow_the_seed(env):
    def draw():
        env.reset()
        env.action_space.seed(11)
        return [env.action_space.sample().tolist() for _ in range(5)]

    assert draw() == draw()


def test_samples_take_no_mask(env):
    with pytest.raises(ValueError, match=r"CodeSpace\.sample\(\) takes no mask"):
        env.action_space.sample(mask=())


INVALID = [
    ([0, 2, 3, 4], r"^codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = \d+, got t1=0 v1=2 t2=3 v2=4$"),
    ([4, 3, 2, 1], r"^codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = \d+, got t1=4 v1=3 t2=2 v2=1$"),
    ([1, 2, 3, 256], r"^codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = \d+, got t1=1 v1=2 t2=3 v2=256$"),
    ([1, 2, 3], r"^codes must be four integers \(t1, v1, t2, v2\), got "),
    ([[1, 2, 3, 4]], r"^codes must be four integers \(t1, v1, t2, v2\), got "),
    ([1, 2, 3, 4, 9], r"^codes must be four integers \(t1, v1, t2, v2\), got "),
    ([1.0, 2.0, 3.0, 4.0], r"^codes must be four integers \(t1, v1, t2, v2\), got "),
]


@pytest.mark.parametrize(("action", "message"), INVALID)
def test_invalid_actions_name_the_rule_and_change_nothing(env, action, message):
    configuration = random_configuration(env, 3)
    expected, _, infos = play(env, configuration)
    env.reset()
    rewards = []
    for codes, info in zip(configuration, infos[1:], strict=True):
        with pytest.raises(ValueError, match=message):
            env.step(np.array(action))
        _, reward, _, _, found = env.step(np.array(codes))
        assert found["tmax"] == info["tmax"]
        rewards.append(reward)
    assert rewards == expected
    assert found["return"] == infos[-1]["return"]
    assert np.array_equal(found["codes"], infos[-1]["codes"])


def test_codes_above_the_layers_own_tmax_are_invalid(env):
    env.reset()
    for layer in env.evaluator.calibration.layers:
        if layer.tmax < 255:
            with pytest.raises(ValueError, match=rf"<= tmax = {layer.tmax}, got t1=1 v1=2 t2=3 v2={layer.tmax + 1}$"):
                env.step(np.array([1, 2, 3, layer.tmax + 1]))
        env.step(np.array([1, 2, 3, layer.tmax]))


def test_actions_may_be_lists_and_any_integers(env):
    quintile = env.evaluator.calibration.quintile
    expected = play(env, quintile)[0]
    for kind in (list, lambda codes: np.array(codes, np.uint8), lambda codes: np.array(codes, np.int32)):
        env.reset()
        assert [env.step(kind(codes))[1] for codes in quintile] == expected


# -- order of calls


def test_step_before_reset(env):
    with pytest.raises(gym.error.ResetNeeded) as caught:
        env.step(np.array([1, 2, 3, 4]))
    assert str(caught.value) == "call reset() before step(): no episode is under way"


def test_step_after_the_end(env):
    play(env, env.evaluator.calibration.quintile)
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded):
            env.step(np.array([1, 2, 3, 4]))
    env.reset()
    env.step(np.array([1, 2, 3, 4]))


def test_reset_after_half_an_episode_starts_anew(env):
    configuration = random_configuration(env, 7)
    expected = play(env, configuration)
    env.reset()
    for codes in random_configuration(env, 8)[:3]:
        env.step(np.array(codes))
    observation, info = env.reset()
    assert np.array_equal(observation, expected[1][0])
    assert info == {"tmax": env.evaluator.calibration.tmax[0]}
    assert env.action_space.tmax == info["tmax"]
    again = play(env, configuration)
    assert again[0] == expected[0]
    assert np.array_equal(again[2][-1]["codes"], expected[2][-1]["codes"])


def test_two_environments_over_one_evaluator(evaluator):
    one, two = TapEnv(evaluator), TapEnv(evaluator)
    configurations = random_configuration(one, 1), random_configuration(two, 2)
    expected = [play(TapEnv(evaluator), configuration)[0] for configuration in configurations]
    one.reset()
    two.reset()
    rewards = [], []
    for first, second in zip(*configurations, strict=True):
        rewards[0].append(one.step(np.array(first))[1])
        rewards[1].append(two.step(np.array(second))[1])
    assert [*rewards] == expected
    one.reset()
    assert two.action_space.tmax == evaluator.calibration.tmax[-1]  # each has an action space of its own
