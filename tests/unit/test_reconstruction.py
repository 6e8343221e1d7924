"""Codes by the squared gradient of KD + AT: the lowest error there is, and what the weights are."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from approx_env import tap
from approx_env.adapt import reconstruction
from approx_env.adapt.simulation import Simulation
from approx_env.scoring import calibration, elementary
from approx_env.scoring.evaluator import Problem, Reward
from search.algorithms import reconstruction as algorithm

KD_ALONE = Reward(at_weight=0.0)


def error(weights: np.ndarray, counts: np.ndarray, codes: tuple, tmax: int) -> float:
    """As the module has it, the slow and plain way."""
    c = np.arange(tmax + 1)
    w, n, off = weights[: tmax + 1], counts[: tmax + 1], tap.tap(c.astype(np.uint8), codes, tmax).astype(float) - c
    mean, slope = (n * off).sum() / (n * c).sum(), (n * c * off).sum() / (n * c**2).sum()
    return (w * off**2).sum() / (w * c**2).sum() + reconstruction.LINEAR * (mean**2 + slope**2)


@settings(max_examples=30)
@given(st.integers(5, 9), st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.floats(0.2, 5))
def test_no_valid_codes_have_a_lower_error(tmax, seed, empty, steep):
    generator = np.random.default_rng(seed)
    both = generator.random((2, 256)) * np.exp(-steep * np.arange(256) / tmax) * (generator.random((2, 256)) >= empty)
    both[:, generator.integers(1, tmax + 1)] = 1.0
    valid = list(combinations(range(1, tmax + 1), 4))
    lowest = min(error(*both, codes, tmax) for codes in valid)
    found = reconstruction.best_codes(*both, tmax)
    assert found in valid and error(*both, found, tmax) == pytest.approx(lowest, rel=1e-6, abs=1e-9)


def test_codes_of_a_wide_layer_have_next_to_no_mean_and_slope_error():
    """Without the linear terms they have: each segment's best value is its mean, and that of the lowest is lost."""
    c = np.arange(256)
    counts = np.exp(-c / 60.0)
    codes = reconstruction.best_codes(counts * c, counts, 255)
    off = tap.tap(c.astype(np.uint8), codes, 255) - c.astype(float)
    assert abs((counts * off).sum() / (counts * c).sum()) < 0.02
    assert abs((counts * c * off).sum() / (counts * c**2).sum()) < 0.02


@pytest.mark.parametrize("none", [np.zeros(256), np.eye(256)[0], np.eye(256)[200]])
def test_a_layer_without_weights_or_counts_has_all_codes_alike(none):
    alike = reconstruction.best_codes(np.ones(256), np.ones(256), 35)
    assert reconstruction.best_codes(none, np.arange(256), 35) == alike
    assert reconstruction.best_codes(np.arange(256), none, 35) == alike


@pytest.fixture(scope="module")
def problem(small) -> Problem:
    calibrated = calibration.calibrate(small.network, [small.images], tmax_offset=-200)  # few codes, soon compared
    return Problem(small.network, calibrated, small.images, small.labels, KD_ALONE)


def test_weights_are_squared_gradients_by_code(problem):
    """Of the last layer, behind which there is one linear node: d KD / d logits = T (student's - teacher's softmax)."""
    network, images = problem.network, torch.from_numpy(problem.images)
    layers = {layer.name: (layer.quintile, layer.tmax) for layer in problem.calibration.layers}
    with torch.no_grad():
        student, teacher = Simulation(network, layers).outputs(images), Simulation(network, {}).outputs(images)
    last = network.nodes[-1]
    logits = (out[last.name].numpy() * network.logit_scale for out in (student, teacher))
    p, q = (np.exp(elementary.log_softmax(each / 2)) for each in logits)
    per_code = network.logit_scale * last.multiplier[:, None] * last.weight
    gradient = (2 * (p - q)) @ per_code
    codes = student[network.by_name["three"].inputs[0]].numpy().astype(int)
    expected = np.bincount(codes.ravel(), (gradient**2).ravel(), 256)
    found, counts = reconstruction._Gradients(network, problem.images, KD_ALONE).weights(layers, "three")
    assert counts.tolist() == np.bincount(codes.ravel(), minlength=256).tolist()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9 * expected.max())


def test_batches_add_up(problem, monkeypatch):
    layers = {layer.name: (layer.quintile, layer.tmax) for layer in problem.calibration.layers}
    whole = reconstruction._Gradients(problem.network, problem.images, Reward()).weights(layers, "two")
    monkeypatch.setattr(reconstruction, "BATCH", 7)
    parts = reconstruction._Gradients(problem.network, problem.images, Reward()).weights(layers, "two")
    assert parts[0] == pytest.approx(whole[0], rel=1e-3) and whole[0].sum() > 0
    assert parts[1].tolist() == whole[1].tolist()


@pytest.mark.parametrize("reward", [Reward(), KD_ALONE, Reward(kd_weight=0.0), Reward(kd_weight=0.0, at_weight=0.0)])
def test_a_proposal_is_valid_and_the_same_again(problem, reward):
    arguments = problem.network, problem.calibration, problem.images, reward
    found = reconstruction.propose(*arguments)
    assert problem.calibration.valid(found) and found == reconstruction.propose(*arguments)


def test_the_algorithm_proposes_it_once_with_as_many_codes_as_are_searched(problem):
    free = calibration.Calibration(problem.calibration.layers, 90, 10, search_tmax=True)
    for calibrated in (problem.calibration, free):
        made = Problem(problem.network, calibrated, problem.images, problem.labels, KD_ALONE)
        start = algorithm.start(made, problem.images)
        found = reconstruction.propose(problem.network, calibrated, problem.images, KD_ALONE)
        assert calibrated.valid(start) and [codes[:4] for codes in start] == list(found)
        search = algorithm.Search(calibrated, 0, algorithm.Options(start=[list(codes) for codes in start]))
        assert (search.ask(9), search.ask(9)) == ([start], [])
