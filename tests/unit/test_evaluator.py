from dataclasses import replace

import numpy as np
import pytest
import torch

from approx_env import env, tap
from approx_env.adapt import correction
from approx_env.engines import reference
from approx_env.engines.vector.engine import VectorEngine
from approx_env.int8.energy import Energy
from approx_env.scoring import baselines, distill
from approx_env.scoring.configuration import layer_forwards
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from tests.twins import table_of


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def total(rewards) -> float:
    """The sum in order; the built-in `sum` compensates rounding from Python 3.12 on."""
    result = 0.0
    for reward in rewards:
        result += reward
    return result


def by_hand(problem: Problem, configuration) -> dict[str, float]:
    """The score in plain numpy, from the exact-integer reference."""

    def run(config):
        outputs = reference.forward(problem.network, problem.images, config)
        maps = []
        for name in problem.network.attention:
            squares = outputs[name].astype(float) ** 2
            q = squares.sum(1).reshape(len(squares), -1) if squares.ndim == 4 else squares
            maps.append(q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-12))
        return outputs["last"] * problem.network.logit_scale, maps

    def softmax(logits):
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    layers = problem.calibration.layers
    student, maps = run({layer.name: (c, layer.tmax) for layer, c in zip(layers, configuration, strict=True) if c})
    teacher, teacher_maps = run(None)
    temperature, every = problem.reward.kd_temperature, np.arange(len(student))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    accuracy = (student.argmax(1) == problem.labels).mean()
    return {
        "accuracy": accuracy,
        "soft_accuracy": softmax(8 * student)[every, problem.labels].mean(),
        "drop_points": 100 * ((teacher.argmax(1) == problem.labels).mean() - accuracy),
        "kd": temperature**2 * (p * np.log(p / q)).sum(1).mean(),
        "at": sum(((a - b) ** 2).sum(1).mean() for a, b in zip(maps, teacher_maps, strict=True)),
    }


@pytest.mark.parametrize("reward", [Reward(), Reward("soft", 3.0, 0.25, 2.0), Reward("hard", 1.0, 0.0, 0.0), Reward("none", 2.0, 1.0, 0.5)])
def test_score_by_hand(problem, reward):
    problem = replace(problem, reward=reward)
    configuration = problem.calibration.quintile
    score, expected = Evaluator(problem).evaluate(configuration), by_hand(problem, configuration)
    assert score.kd > 0
    assert score.at > 0
    for name, value in expected.items():
        assert getattr(score, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    rewarded = {"hard": expected["accuracy"], "soft": expected["soft_accuracy"], "none": 0.0}[reward.accuracy]
    assert score.return_ == pytest.approx(
        rewarded - reward.kd_weight * expected["kd"] - reward.at_weight * expected["at"], rel=1e-9
    )


def test_return_is_the_sum_of_rewards_exactly(evaluator):
    generator = np.random.default_rng(0)
    for _ in range(4):
        configuration = [tap.random_codes(tmax, generator) for tmax in evaluator.calibration.tmax]
        evaluation = evaluator.begin()
        rewards = [evaluation.advance([codes])[0] for codes in configuration]
        assert total(rewards) == evaluation.scores[0].return_ == evaluator.evaluate(configuration).return_


def test_rewards_come_where_they_are_due(evaluator):
    evaluation = evaluator.begin()
    rewards = [evaluation.advance([codes])[0] for codes in evaluator.calibration.quintile]
    early = dict(zip(evaluator.layers[:-1], rewards, strict=False))
    assert {name for name, reward in early.items() if reward != 0} == set(evaluator.network.attention)
    assert all(reward <= 0 for reward in early.values())
    (score,) = evaluation.scores
    assert -total(early.values()) == pytest.approx(score.at)
    assert rewards[-1] == score.accuracy - score.kd


def test_return_is_what_the_parts_add_up_to(problem):
    for reward in (Reward("soft", 2.0, 0.5, 3.0), Reward("hard", 2.0, 2.0, 0.5)):
        score = Evaluator(replace(problem, reward=reward)).evaluate(problem.calibration.quintile)
        accuracy = score.soft_accuracy if reward.accuracy == "soft" else score.accuracy
        expected = accuracy - reward.kd_weight * score.kd - reward.at_weight * score.at
        assert score.return_ == pytest.approx(expected, rel=1e-12)


def test_same_configuration_scores_the_same(evaluator):
    quintile = evaluator.calibration.quintile
    other = [tap.random_codes(tmax, np.random.default_rng(0)) for tmax in evaluator.calibration.tmax]
    first = evaluator.evaluate(quintile)
    assert not same(first, evaluator.evaluate(other))
    assert same(first, evaluator.evaluate(quintile))


def test_integer_types_do_not_matter(evaluator):
    quintile = evaluator.calibration.quintile
    assert same(evaluator.evaluate(quintile), evaluator.evaluate(np.array(quintile, np.uint8)))
    assert same(evaluator.evaluate(quintile), evaluator.evaluate(np.array(quintile, np.int64)))


def test_evaluations_interleave(evaluator):
    quintile = evaluator.calibration.quintile
    other = [tap.random_codes(tmax, np.random.default_rng(1)) for tmax in evaluator.calibration.tmax]
    one, two = evaluator.begin(), evaluator.begin()
    for codes, others in zip(quintile, other, strict=True):
        one.advance([codes])
        two.advance([others])
    assert same(one.scores[0], evaluator.evaluate(quintile))
    assert same(two.scores[0], evaluator.evaluate(other))


def test_chunks_do_not_matter(problem, monkeypatch):
    whole = Evaluator(problem)
    monkeypatch.setattr(VectorEngine, "chunk", 7)
    parts = Evaluator(problem)
    assert (len(whole.starts), len(parts.starts)) == (1, 7)
    assert torch.equal(whole.teacher_logits, parts.teacher_logits)
    assert same(*(one.evaluate(problem.calibration.quintile) for one in (whole, parts)))


def test_teacher_is_the_exact_network(evaluator, network, digits):
    images, labels = digits.load("search", len(evaluator.labels))
    logits = VectorEngine(network).forward(images)
    assert torch.equal(evaluator.teacher_logits, logits)
    assert evaluator.teacher_accuracy == (logits.argmax(1).numpy() == labels).mean()


def test_next_to_no_approximation_costs_next_to_nothing(problem):
    """Under tmax 4 the codes 1, 2, 3, 4 become 0, 2, 2, 4, and every other code stays."""
    layers = tuple(replace(layer, tmax=4) for layer in problem.calibration.layers)
    gentle = replace(problem, calibration=replace(problem.calibration, layers=layers))
    score = Evaluator(gentle).evaluate([(1, 2, 3, 4)] * 3)
    usual = Evaluator(problem).evaluate(problem.calibration.quintile)
    assert score.kd < 0.1 * usual.kd
    assert score.at < 0.1 * usual.at
    assert (score.layer_shares[:, 3] > usual.layer_shares[:, 3]).all()


def test_cost_shares_add_up(evaluator):
    score = evaluator.evaluate(evaluator.calibration.quintile)
    assert score.layer_shares.shape == (len(evaluator.layers), 4)
    np.testing.assert_allclose(score.layer_shares.sum(1), 1)
    assert score.shares.sum() == pytest.approx(1)
    assert (score.layer_shares >= 0).all()
    below, above = score.layer_shares.min(0), score.layer_shares.max(0)
    assert (below - 1e-12 <= score.shares).all()
    assert (score.shares <= above + 1e-12).all()


def test_first_zero_and_v1_shares_follow_t1(evaluator):
    tmax = evaluator.calibration.tmax[0]
    rest = list(evaluator.calibration.quintile[1:])
    low = evaluator.evaluate([(1, 2, 3, tmax), *rest]).layer_shares[0]
    high = evaluator.evaluate([(tmax - 3, tmax - 2, tmax - 1, tmax), *rest]).layer_shares[0]
    assert low[0] < high[0]
    assert low[3] == high[3]  # what lies above tmax is exact whatever the codes


def test_tap_as_a_table_scores_as_tap(evaluator):
    generator = np.random.default_rng(4)
    configuration = [tap.random_codes(tmax, generator) for tmax in evaluator.calibration.tmax]
    tables = [table_of(codes, tmax) for codes, tmax in zip(configuration, evaluator.calibration.tmax, strict=True)]
    assert same(evaluator.evaluate(configuration), evaluator.evaluate(tables))


def test_a_layer_by_a_table_and_the_next_by_codes(problem):
    """And the states that are kept do not mistake one table for another."""
    kept, tmax, quintile = Evaluator(problem), problem.calibration.tmax, list(problem.calibration.quintile)
    for codes in (quintile[0], (1, 2, 3, 4), quintile[0]):
        mixed = [table_of(codes, tmax[0]), *quintile[1:]]
        assert same(kept.evaluate(mixed), Evaluator(problem).evaluate([codes, *quintile[1:]]))


def test_the_exact_network_as_a_baseline_is_the_teacher(evaluator):
    score = evaluator.evaluate([baselines.threshold(0)] * len(evaluator.layers))
    assert (score.accuracy, score.drop_points, score.kd, score.at) == (evaluator.teacher_accuracy, 0.0, 0.0, 0.0)
    assert score.shares[0] == score.zero_natural and score.shares[1:3].tolist() == [0.0, 0.0]
    assert score.layer_shares[:, 0].tolist() == score.layer_zero_natural.tolist()


def test_a_threshold_alone_adds_to_the_natural_zeros(evaluator):
    t1 = [codes[0] for codes in evaluator.calibration.quintile]
    score, tapped = (
        evaluator.evaluate([baselines.threshold(t) for t in t1]),
        evaluator.evaluate(evaluator.calibration.quintile),
    )
    assert 0 < score.zero_natural < score.shares[0] and score.shares[1] == score.shares[2] == 0
    assert score.zero_natural == tapped.zero_natural  # it is the exact network's, whatever is approximated
    assert score.layer_shares[0, 0] == tapped.layer_shares[0, 0]  # both make the same codes zero


def test_relative_energy_by_hand(evaluator):
    score = evaluator.evaluate(evaluator.calibration.quintile)
    _, v1, v2, exact = score.shares
    sites = (0.1 * (v1 + v2) + 0.3 * exact) / 0.3
    assert score.relative_energy_sites == pytest.approx(sites, rel=1e-12)
    assert score.relative_energy == pytest.approx(1 - score.covered * (1 - sites), rel=1e-12)
    assert score.covered == evaluator.covered


def test_a_problem_takes_another_table_of_energy(problem):
    none = Evaluator(replace(problem, energy=Energy("flat", "", 1.0, 1.0, 1.0))).evaluate(problem.calibration.quintile)
    assert none.relative_energy == none.relative_energy_sites == pytest.approx(1)


def test_a_table_does_not_go_in_lockstep(evaluator):
    with pytest.raises(ValueError, match="2 configurations are in lockstep, and codes for 1 came"):
        evaluator.begin(2).advance(baselines.threshold(3))


def test_bad_configurations_are_refused_before_anything_runs(evaluator, monkeypatch):
    def never(*_):
        raise AssertionError("computed")

    evaluator.last = []
    monkeypatch.setattr(evaluator.engine, "advance", never)
    quintile, tmax = list(evaluator.calibration.quintile), evaluator.calibration.tmax
    count = len(quintile)
    for wrong in (quintile[:-1], [*quintile, quintile[0]], []):
        with pytest.raises(ValueError) as caught:
            evaluator.evaluate(wrong)
        assert str(caught.value) == f"a configuration has codes for {count} layers, got {len(wrong)}"
    for last in ((1, 2, 3, tmax[-1] + 1), (2, 2, 3, 4)):
        with pytest.raises(ValueError, match=rf"^codes must satisfy .* <= tmax = {tmax[-1]}, got t1={last[0]} "):
            evaluator.evaluate([*quintile[:-1], last])
    with pytest.raises(AssertionError, match="computed"):
        evaluator.evaluate(quintile)


def test_invalid_step_changes_nothing(evaluator):
    quintile = evaluator.calibration.quintile
    evaluation = evaluator.begin()
    evaluation.advance([quintile[0]])
    with pytest.raises(ValueError, match="^codes must satisfy"):
        evaluation.advance([(4, 3, 2, 1)])
    assert (evaluation.layer, evaluation.scores) == (1, None)
    for codes in quintile[1:]:
        evaluation.advance([codes])
    assert same(evaluation.scores[0], evaluator.evaluate(quintile))


def count_layers(evaluator, monkeypatch) -> list[int]:
    """Grows by one entry, the layer, each time that the engine passes one."""
    passed, advance = [], evaluator.engine.advance

    def counted(state, *rest):
        passed.append(state.layer)
        return advance(state, *rest)

    monkeypatch.setattr(evaluator.engine, "advance", counted)
    return passed


@pytest.mark.parametrize("cache_bytes", [0, 1_000, 10**9])
def test_a_common_beginning_is_computed_once(problem, monkeypatch, cache_bytes):
    cached, generator = Evaluator(problem, cache_bytes), np.random.default_rng(0)
    configuration = list(problem.calibration.quintile)
    cached.evaluate(configuration)
    passed = count_layers(cached, monkeypatch)
    for layer in [2, 1, 2, 0, 2, 2, 1]:
        before = list(configuration)
        configuration[layer] = tap.random_codes(problem.calibration.tmax[layer], generator)
        assert same(cached.evaluate(configuration), Evaluator(problem).evaluate(configuration))
        if cache_bytes == 10**9:
            assert passed == list(range(layer, 3))
            assert len(passed) == layer_forwards(configuration, before)
        passed.clear()
    assert same(cached.evaluate(configuration), Evaluator(problem).evaluate(configuration))
    assert passed == []


@pytest.mark.parametrize("cache_bytes", [1_000, 20_000, 10**9])
def test_the_same_states_stay_whether_chunks_or_layers_come_first(problem, monkeypatch, cache_bytes):
    monkeypatch.setattr(VectorEngine, "chunk", 7)
    chunks_first, layers_first = Evaluator(problem, cache_bytes), Evaluator(problem, cache_bytes)
    chunks_first.evaluate(problem.calibration.quintile)
    evaluation = layers_first.begin()
    for codes in problem.calibration.quintile:
        evaluation.advance([codes])
    kept = [[step.states is not None for step in evaluator.last] for evaluator in (chunks_first, layers_first)]
    assert kept[0] == kept[1] and kept[0][-1]
    assert all(len(step.states) == len(chunks_first.starts) for step in chunks_first.last if step.states)


def test_threads_change_no_bit(problem, monkeypatch):
    monkeypatch.setattr(VectorEngine, "chunk", 7)
    generator = np.random.default_rng(0)
    alone, together = Evaluator(problem), Evaluator(problem, threads=3)
    assert torch.equal(alone.teacher_logits, together.teacher_logits)
    for _ in range(5):
        configuration = [tap.random_codes(tmax, generator) for tmax in problem.calibration.tmax]
        assert same(together.evaluate(configuration), alone.evaluate(configuration))


def test_the_cache_is_bounded(problem):
    limit = 1_000
    small, large = Evaluator(problem, limit), Evaluator(problem)
    for evaluator in (small, large):
        evaluator.evaluate(problem.calibration.quintile)
    sizes = [step.size_bytes for step in large.last]
    assert sum(sizes) > limit
    assert sum(step.size_bytes for step in small.last) <= limit
    kept = [step.states is not None for step in small.last]
    assert kept == sorted(kept)  # the deepest stay
    assert any(kept)


def test_lockstep_is_each_configuration_alone(evaluator):
    generator = np.random.default_rng(2)
    configurations = [
        [tap.random_codes(tmax, generator) for tmax in evaluator.calibration.tmax] for _ in range(3)
    ]  # fmt: skip
    together = evaluator.begin(3)
    rewards = [together.advance(codes) for codes in zip(*configurations, strict=True)]
    for k, configuration in enumerate(configurations):
        alone = evaluator.begin()
        assert [alone.advance([codes])[0] for codes in configuration] == [step[k] for step in rewards]
        assert same(alone.scores[0], together.scores[k])


def test_a_configuration_s_own_tmax_takes_the_place_of_the_calibrated_one(problem):
    """As with a calibration that has it; alone and in lockstep, with and without states that are kept."""
    evaluator, calibrated = Evaluator(problem), problem.calibration
    limits = [[min(255, tmax - tmax // 5 + 30 * k) for tmax in calibrated.tmax] for k in range(3)]
    expected, configurations = [], []
    for tmax in limits:
        layers = tuple(replace(layer, tmax=limit) for layer, limit in zip(calibrated.layers, tmax, strict=True))
        other = Evaluator(replace(problem, calibration=replace(calibrated, layers=layers)))
        expected.append(other.evaluate(calibrated.quintile))
        configurations.append([(*codes, limit) for codes, limit in zip(calibrated.quintile, tmax, strict=True)])
    together = evaluator.begin(3)
    for codes in zip(*configurations, strict=True):
        together.advance(codes)
    for one, configuration, score in zip(expected, configurations, together.scores, strict=True):
        assert same(one, score) and same(one, evaluator.evaluate(configuration))
    assert len({score.mac_exact_all for score in expected}) == 3
    same_tmax = [(*codes, tmax) for codes, tmax in zip(calibrated.quintile, calibrated.tmax, strict=True)]
    assert same(evaluator.evaluate(same_tmax), evaluator.evaluate(calibrated.quintile))


def test_the_share_of_all_that_stays_exact(evaluator):
    score = evaluator.evaluate(evaluator.calibration.quintile)
    assert 0 < evaluator.covered < 1
    assert score.mac_exact_all == pytest.approx(score.shares[3] * evaluator.covered + 1 - evaluator.covered)


def test_lockstep_wants_codes_for_all(evaluator):
    with pytest.raises(ValueError, match="^3 configurations are in lockstep, and codes for 1 came$"):
        evaluator.begin(3).advance([evaluator.calibration.quintile[0]])


def test_shipped_evaluator():
    shipped = env.shipped_evaluator("alexnet")
    assert shipped.layers == ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2")
    assert len(shipped.labels) == 256
    assert shipped.reward == Reward()
    assert shipped.teacher_accuracy > 0.95
    histogram = shipped.calibration.layers[0].histogram
    assert histogram.sum() == 16 * 32 * 64 * 16 * 16


# -- layers that stay exact


@pytest.mark.parametrize("exact", [(0,), (1,), (2,), (0, 1), (0, 2)])
def test_a_layer_without_codes_stays_exact(problem, exact):
    configuration = [None if k in exact else codes for k, codes in enumerate(problem.calibration.quintile)]
    score, expected = Evaluator(problem).evaluate(configuration), by_hand(problem, configuration)
    for name, value in expected.items():
        assert getattr(score, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert [layer[1] + layer[2] == 0 for layer in score.layer_shares] == [k in exact for k in range(3)]
    np.testing.assert_allclose(score.layer_shares.sum(1), 1)


def test_without_any_codes_it_is_the_teacher(evaluator):
    score = evaluator.evaluate([None] * len(evaluator.layers))
    assert (score.accuracy, score.drop_points, score.kd, score.at) == (evaluator.teacher_accuracy, 0, 0, 0)
    assert 0 < score.shares[0] < 1 and score.shares[1:3].tolist() == [0, 0]


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_exact_layers_are_told_from_others_by_what_is_kept(problem, cache_bytes):
    cached, quintile = Evaluator(problem, cache_bytes), problem.calibration.quintile
    for kept in ((), (0,), (0, 1), (1,), (0, 1, 2), (1, 2), (2,), (2,)):
        configuration = [codes if k in kept else None for k, codes in enumerate(quintile)]
        assert same(cached.evaluate(configuration), Evaluator(problem).evaluate(configuration))


def test_only_a_configuration_alone_may_leave_a_layer_exact(evaluator):
    with pytest.raises(ValueError, match="^2 configurations are in lockstep, and codes for 1 came$"):
        evaluator.begin(2).advance(None)


# -- students


def test_a_student_is_scored_against_the_exact_teacher(problem):
    """Its own weights under TAP; the teacher's logits and attention maps without."""
    student = correction.correct(problem.network, problem.calibration, problem.calibration.quintile, problem.images)
    configuration = {layer.name: (layer.quintile, layer.tmax) for layer in problem.calibration.layers}
    logits = reference.forward(student, problem.images, configuration)["last"] * student.logit_scale
    exact = reference.forward(problem.network, problem.images)
    adapted = Evaluator(replace(problem, student=student))
    score, plain = (each.evaluate(problem.calibration.quintile) for each in (adapted, Evaluator(problem)))
    assert torch.equal(adapted.teacher_logits, torch.from_numpy(exact["last"] * problem.network.logit_scale))
    assert score.kd == distill.kd_loss(logits, adapted.teacher_logits)
    assert score.accuracy == distill.hard_accuracy(logits, problem.labels)
    energy = reference.energy(exact["one"]).reshape(len(problem.images), -1)
    assert np.array_equal(torch.cat(adapted.teacher_energies["one"]).numpy(), energy)
    assert score.kd < plain.kd and not same(score, plain)


def test_a_student_that_is_the_teacher_scores_the_same(problem):
    one, other = Evaluator(problem), Evaluator(replace(problem, student=problem.network))
    assert torch.equal(one.teacher_logits, other.teacher_logits)
    assert same(*(each.evaluate(problem.calibration.quintile) for each in (one, other)))


def test_students_in_turn_score_as_each_does_alone(problem):
    """And the evaluator that they came from goes on as before."""
    owner, quintile = Evaluator(problem), problem.calibration.quintile
    for method in ("mean", "deviation"):
        student = correction.correct(problem.network, problem.calibration, quintile, problem.images, method)
        alone = Evaluator(replace(problem, student=student))
        assert same(owner.with_student(student).evaluate(quintile), alone.evaluate(quintile))
    expected = Evaluator(problem).evaluate(quintile)
    assert all(same(each.evaluate(quintile), expected) for each in (owner, owner.with_student(None)))


def test_a_student_has_its_teachers_layers(problem, ramp):
    with pytest.raises(ValueError, match=r"^the calibration must be of layers \('ramp',\), in this order, got "):
        Evaluator(replace(problem, student=ramp))
    with pytest.raises(ValueError, match=r"^a student must have its teacher's attention layers \('one',"):
        Evaluator(replace(problem, student=replace(problem.network, attention=())))


def test_codes_of_any_kind_of_sequence_count_as_the_same():
    assert layer_forwards(np.array([[1, 2, 3, 4], [1, 2, 3, 4]]), ([1, 2, 3, 4], (1, 2, 3, 5))) == 1
    assert layer_forwards([(1, 2, 3, 4)] * 3) == 3
