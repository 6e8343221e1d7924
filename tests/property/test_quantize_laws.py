import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from approx_env.int8 import nodes, quantize

WEIGHTS = hnp.arrays(
    np.float64,
    st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    ),
    elements=st.one_of(st.floats(-4, 4), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])),
)


STEP = 2.0**-20


def columns(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (STEP * scale).reshape(-1, *[1] * (weight.ndim - 1))


@given(WEIGHTS)
def test_weights_are_pair_safe(weight):
    codes, _ = quantize.quantize_weight(weight, STEP)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= 127
    assert nodes.weight_pairs(codes).max() <= nodes.HIGHEST_PAIR


@given(WEIGHTS, st.integers(0, 2**32))
def test_no_pair_of_products_leaves_16_bits(weight, seed):
    codes = quantize.quantize_weight(weight, STEP)[0].astype(int).reshape(*weight.shape[:2], -1)
    inputs = np.random.default_rng(seed).choice([0, 255], codes.shape)
    products = np.pad(codes * inputs, ((0, 0), (0, codes.shape[1] % 2), (0, 0)))
    pairs = products[:, 0::2] + products[:, 1::2]
    assert pairs.min() >= -(2**15)
    assert pairs.max() < 2**15


@given(WEIGHTS)
def test_error_is_at_most_half_a_scale(weight):
    codes, scale = quantize.quantize_weight(weight, STEP)
    steps = columns(weight, scale)
    assert (scale > 0).all()
    assert (np.abs(codes * steps - weight) <= steps * (0.5 + 2e-4)).all()


@given(WEIGHTS)
def test_scales_are_no_larger_than_they_must_be(weight):
    """The largest weight of a channel, or its largest pair, reaches the end of the range."""
    codes, _ = quantize.quantize_weight(weight, STEP)
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    reached = np.maximum(np.abs(codes.astype(int)).reshape(len(weight), -1).max(1), nodes.weight_pairs(codes))
    assert (reached[largest > 0.1] >= 126).all()


@given(WEIGHTS)
def test_channels_are_quantised_apart(weight):
    codes, scale = quantize.quantize_weight(weight, STEP)
    alone, own = quantize.quantize_weight(weight[:1], STEP)
    assert np.array_equal(codes[:1], alone)
    assert scale[0] == own[0]


@given(WEIGHTS)
def test_signs_do_not_matter(weight):
    codes, scale = quantize.quantize_weight(weight, STEP)
    mirrored, same = quantize.quantize_weight(-weight, STEP)
    assert np.array_equal(mirrored, -codes)
    assert np.array_equal(scale, same)


@given(hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(0, 100, width=32)))
def test_mse_scale_lies_between_its_clips(sample):
    scale, highest = quantize.mse_scale(sample), float(sample.max())
    if highest > 0:
        assert 0.2 * highest / 255 * (1 - 1e-6) <= scale <= highest / 255 * (1 + 1e-6)
    else:
        assert scale == 1.0
