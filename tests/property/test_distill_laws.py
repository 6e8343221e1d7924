import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from approx_env.scoring import calibration, distill

LOGITS = st.tuples(st.integers(1, 6), st.integers(2, 7)).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=st.floats(-30, 30, width=32))] * 2)
)
TEMPERATURES = st.floats(0.25, 16)


@given(LOGITS, TEMPERATURES)
def test_kd_is_zero_on_equal_logits_and_never_negative(pair, temperature):
    student, teacher = map(torch.from_numpy, pair)
    assert distill.kd_loss(teacher, teacher.clone(), temperature) == 0.0
    assert distill.kd_loss(student, teacher, temperature) >= -1e-9


@given(LOGITS, TEMPERATURES, st.integers(-50, 50))
def test_kd_does_not_see_a_common_shift(pair, temperature, shift):
    student, teacher = (torch.from_numpy(logits).double() for logits in pair)
    expected = distill.kd_loss(student, teacher, temperature)
    assert distill.kd_loss(student + shift, teacher, temperature) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(LOGITS, st.integers(0, 2**32))
def test_accuracies_lie_in_the_unit_interval(pair, seed):
    logits = torch.from_numpy(pair[0])
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, logits.shape[1], len(logits)))
    assert 0 <= distill.hard_accuracy(logits, labels) <= 1
    assert 0 <= distill.soft_accuracy(logits, labels) <= 1 + 1e-12


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)), st.integers(0, 2**32))
def test_attention_distances_are_those_of_normalised_maps(codes, seed):
    one = codes.astype(np.int64) ** 2
    other = np.random.default_rng(seed).integers(0, 2**20, codes.shape)

    def maps(energy: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(energy, axis=1, keepdims=True)
        return np.divide(energy, norms, out=np.zeros(energy.shape), where=norms > 0)

    found = distill.attention_distances(torch.from_numpy(one), torch.from_numpy(other))
    np.testing.assert_allclose(found, ((maps(one) - maps(other)) ** 2).sum(1), atol=1e-12)
    assert (found >= 0).all()
    assert not distill.attention_distances(torch.from_numpy(one), torch.from_numpy(one)).any()


@given(hnp.arrays(np.int64, 256, elements=st.integers(0, 1000)), st.floats(0.5, 100))
def test_percentile_is_the_smallest_code_that_covers_its_share(histogram, share):
    code = calibration.percentile(histogram, share)
    wanted = round(histogram.sum() * share / 100, 6)
    assert histogram[: code + 1].sum() >= wanted
    assert code == 0 or histogram[:code].sum() < wanted


@given(hnp.arrays(np.int64, 256, elements=st.integers(0, 1000)), st.floats(0, 1))
def test_observations_lie_in_the_box(histogram, depth):
    observation = calibration.observe(histogram, depth)
    assert observation.dtype == np.float32
    assert (observation >= 0).all()
    assert (observation <= 1).all()
