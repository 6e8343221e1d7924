"""Each fast kernel agrees with its slow twin on every input."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from approx_env import tap
from approx_env.engines import reference
from approx_env.engines.vector import convolution, kernels
from approx_env.int8.network import Network
from approx_env.int8.nodes import MaxPool, Site

SEEDS = st.integers(0, 2**32)
# Around bytes, 32-byte vectors and the 128 channels that are counted in a byte.
CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 255, 256, 257, 300, 384, 511, 513]))


def random_codes(seed: int, shape, share_of_zeros: float = 0.3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, shape, np.uint8)
    return np.where(generator.random(shape) < share_of_zeros, 0, codes).astype(np.uint8)


def channels_last(codes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(codes.transpose(0, 2, 3, 1))


@st.composite
def pools(draw):
    """A max pool and the sides of an input that is no smaller than its window."""
    kernel, stride, ceil = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.booleans())
    sides = draw(st.tuples(*[st.integers(kernel, 13)] * 2))
    return MaxPool("pool", ("input",), kernel, stride, ceil), sides


@given(pools(), st.integers(1, 3), CHANNELS, SEEDS)
def test_max_pool(given_pool, count, channels, seed):
    pool, sides = given_pool
    codes = random_codes(seed, (count, channels, *sides))
    network = Network("m", ("0", "1"), codes.shape[1:], 1.0, 0, (pool, Site("s", ("pool",))), ())
    shape = network.shapes["pool"]
    y = np.empty((count, *shape[1:], channels), np.uint8)
    kernels.max_pool(channels_last(codes), y, pool.kernel, pool.stride)
    slow = reference.max_pool(codes, pool.kernel, pool.stride, shape[1:])
    assert np.array_equal(y.transpose(0, 3, 1, 2), slow)
    torchs = F.max_pool2d(torch.from_numpy(codes).float(), pool.kernel, pool.stride, ceil_mode=pool.ceil)
    assert np.array_equal(slow, torchs.numpy())


@given(st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 9), st.integers(1, 9)), SEEDS)
def test_energy(shape, seed):
    codes = random_codes(seed, shape)
    q = np.empty(shape[0] * shape[2] * shape[3], np.int64)
    kernels.energy(channels_last(codes).reshape(-1, shape[1]), q)
    assert np.array_equal(q, reference.energy(codes).reshape(-1))


@given(
    st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.integers(0, 255), min_size=3, max_size=3).map(sorted),
    SEEDS,
)
def test_tally(shape, limits, seed):
    codes = random_codes(seed, shape)
    weights = np.random.default_rng(seed).integers(0, 5000, shape[2:])
    counts = np.zeros(4, np.int64)
    rows = channels_last(codes).reshape(shape[0], -1, shape[1])
    kernels.tally(rows, *(np.uint8(limit) for limit in limits), weights.reshape(-1), counts)
    assert np.array_equal(counts, reference.tally(codes, limits, weights))
    assert counts.sum() == shape[0] * shape[1] * weights.sum()


@given(st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 9), st.integers(1, 9)), SEEDS)
def test_tables(shape, seed):
    codes = random_codes(seed, shape)
    x = channels_last(codes).reshape(shape[0], -1, shape[1])
    values = np.sort(random_codes(seed + 1, 256))
    y = np.empty_like(x)
    kernels.look_up(x.reshape(-1), y.reshape(-1), values)
    assert np.array_equal(y, values[x])
    weights = np.random.default_rng(seed).integers(0, 5000, shape[2] * shape[3])
    counts = np.zeros(256, np.int64)
    kernels.histogram(x, weights, counts)
    slow = [int((weights[:, None] * (x == code)).sum()) for code in range(256)]
    assert counts.tolist() == slow


@given(
    st.integers(1, 3), st.integers(1, 5), st.sampled_from([32, 64, 96, 512, 8160]), SEEDS, st.booleans(), st.booleans()
)
def test_approximate(count, places, channels, seed, counted, squared):
    """TAP, tally and energy in one: the plain kernel and the one with AVX2."""
    codes = random_codes(seed, (count, channels, places, 1))
    generator = np.random.default_rng(seed)
    tmax = int(generator.integers(4, 256))
    four = tap.random_codes(tmax, generator)
    x = channels_last(codes).reshape(count, places, channels)
    weights = generator.integers(1, 1000, places) if counted else np.empty(0, np.int64)
    expected = tap.tap(codes, four, tmax)
    kinds = reference.tally(expected, (0, four[1], tmax), weights.reshape(-1, 1)) if counted else np.zeros(4)
    for kernel in [kernels.approximate] + [kernels.approximate_avx2] * bool(convolution.available()):
        y, counts = np.empty_like(x), np.zeros(4, np.int64)
        q = np.empty((count, places) if squared else (0, 0), np.int64)
        kernel(x, y, np.array([*four, tmax], np.uint8), weights, counts, q)
        assert np.array_equal(y, channels_last(expected).reshape(x.shape))
        assert counts.tolist() == kinds.tolist()
        if squared:
            assert np.array_equal(q, reference.energy(expected)[:, :, 0])
