"""exp, log and mean against the decimal module, to two units in the last place."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from approx_env.scoring import elementary

ULPS = 2
EXP = [
    "0x1.3278bcd70e981p-54",
    "0x1.54dc284911bf1p-2",
    "0x1.fffffff768fa1p-1",
    "0x1.599058c8c1a96p+0",
    "0x1.5079f95a52756p+18",
]
LOG = [
    "-0x1.ba18a998fffa0p+2",
    "-0x1.6d3c324e13f4fp-2",
    "0x1.8663f793c46ccp-4",
    "0x1.202a5464624b1p+1",
    "0x1.4b927f32bffb8p+4",
]


def apart(found: float, exact: Decimal) -> float:
    """How many units in the last place `found` is from the exact value."""
    return float(abs(Decimal(float(found)) - exact) / Decimal(math.ulp(float(exact))))


@given(st.floats(-700, 700))
def test_exp(x):
    with localcontext(prec=60):
        assert apart(elementary.exp(np.array([x]))[0], Decimal(x).exp()) <= ULPS


@given(st.floats(1e-300, 1e300))
def test_log(x):
    found = elementary.log(np.array([x]))[0]
    with localcontext(prec=60):
        exact = Decimal(x).ln()
        # Near 1 the result is small, and its unit smaller still: there the error is one of the series.
        assert apart(found, exact) <= ULPS or abs(Decimal(float(found)) - exact) < Decimal("1e-16")


def test_ends():
    assert elementary.exp(np.array([0.0, -1e4])).tolist() == [1.0, 0.0]
    assert elementary.log(np.array([1.0])).tolist() == [0.0]


def test_bits_that_every_machine_must_give():
    x = np.array([-37.25, -1.1, -1e-9, 0.3, 12.75])
    assert [value.hex() for value in elementary.exp(x).tolist()] == EXP
    assert [value.hex() for value in elementary.log(np.array([0.001, 0.7, 1.1, 9.5, 1e9])).tolist()] == LOG


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.randoms())
def test_mean_does_not_depend_on_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert elementary.mean(shuffled) == elementary.mean(values) == pytest.approx(sum(values) / len(values), abs=1e-6)
