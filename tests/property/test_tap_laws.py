"""The laws of the operator, on all 256 codes at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from approx_env import tap
from approx_env.engines import reference
from approx_env.engines.vector import kernels

ALL = np.arange(256, dtype=np.uint8)
BYTES = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9), elements=st.integers(0, 255))


@st.composite
def configurations(draw):
    """Valid `(codes, tmax)`."""
    tmax = draw(st.integers(tap.LOWEST_TMAX, 255))
    codes = draw(st.lists(st.integers(1, tmax), min_size=4, max_size=4, unique=True))
    return tuple(sorted(codes)), tmax


@st.composite
def shifted(draw):
    """Valid `(codes, tmax, zero_point)`."""
    codes, tmax = draw(configurations())
    return codes, tmax, draw(st.integers(0, 255 - tmax))


@given(shifted())
def test_definition(given_):
    (t1, v1, t2, v2), tmax, z = given_
    approximated = tap.tap(ALL, (t1, v1, t2, v2), tmax, z)
    for c in range(256):
        d = c - z
        expected = 0 if d <= t1 else v1 if d <= t2 else v2 if d <= tmax else d
        assert approximated[c] == expected + z


@given(shifted())
def test_monotone(given_):
    assert (np.diff(tap.tap(ALL, *given_).astype(int)) >= 0).all()


@given(shifted())
def test_idempotent(given_):
    once = tap.tap(ALL, *given_)
    assert np.array_equal(tap.tap(once, *given_), once)


@given(shifted())
def test_identity_above_tmax(given_):
    _, tmax, z = given_
    assert np.array_equal(tap.tap(ALL, *given_)[z + tmax + 1 :], ALL[z + tmax + 1 :])


@given(shifted())
def test_image(given_):
    (_, v1, _, v2), tmax, z = given_
    image = set(tap.tap(ALL, *given_).tolist())
    assert image == {z, z + v1, z + v2} | set(range(z + tmax + 1, 256))


@given(shifted(), hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 4)), st.integers(1, 3), st.integers(1, 3))
def test_commutes_with_max_pooling(given_, codes, kernel, stride):
    shape = tuple((side - 1) // stride + 1 for side in codes.shape[2:])
    after = tap.tap(reference.max_pool(codes, kernel, stride, shape), *given_)
    before = reference.max_pool(tap.tap(codes, *given_), kernel, stride, shape)
    assert np.array_equal(after, before)


def fast(codes: np.ndarray, configuration) -> np.ndarray:
    (t1, v1, t2, v2), tmax = configuration
    y = np.empty_like(codes.reshape(-1))
    kernels.tap(codes.reshape(-1), y, *(np.uint8(code) for code in (t1, v1, t2, v2, tmax)))
    return y.reshape(codes.shape)


@given(configurations())
def test_kernel_equals_definition_on_all_codes(configuration):
    assert np.array_equal(fast(ALL, configuration), tap.tap(ALL, *configuration))


@given(configurations(), BYTES)
def test_kernel_equals_definition_on_arrays(configuration, codes):
    assert np.array_equal(fast(codes, configuration), tap.tap(codes, *configuration))


@given(st.integers(tap.LOWEST_TMAX, 255), st.integers(0, 2**32))
def test_random_codes_are_valid(tmax, seed):
    generator = np.random.default_rng(seed)
    for _ in range(10):
        assert tap.problems(tap.random_codes(tmax, generator), tmax) == []


@given(st.integers(5, 255))
def test_quintile_is_valid(tmax):
    assert tap.problems(tap.quintile(tmax), tmax) == []


@given(st.lists(st.integers(-5, 260), min_size=4, max_size=4), st.integers(-5, 260))
def test_problems_are_found_exactly_where_the_rule_is_broken(codes, tmax):
    t1, v1, t2, v2 = codes
    valid = 4 <= tmax <= 255 and 1 <= t1 < v1 < t2 < v2 <= tmax
    assert (tap.problems(codes, tmax) == []) == valid
