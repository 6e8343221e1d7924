"""exp, log and sums that have the same bits on every machine.

Libraries compute exp and log by other instructions on other CPUs, and differ in the last bit; sums depend on their
order. Here exp and log take float64 additions, multiplications and divisions alone, which IEEE 754 defines to the
bit, in a fixed order. Both are within two units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # ln 2 = high + low; high has 20 zero bits, so that k * high is exact
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
EXP_TERMS = 14  # of the Taylor series: its rest is below 1e-17 for |r| <= ln(2) / 2
LOG_TERMS = 11  # of 2 artanh f: its rest is below 1e-17 for |f| <= 0.172
SQRT_HALF = 0.7071067811865476


def exp(x: np.ndarray) -> np.ndarray:
    """e to the power of `x float64`, which must be finite."""
    k = np.rint(x / LN2_HIGH)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    value = np.full_like(r, 1 / math.factorial(EXP_TERMS - 1))
    for n in reversed(range(EXP_TERMS - 1)):
        value = value * r + 1 / math.factorial(n)
    return np.ldexp(value, k.astype(np.int64))


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of `x float64`, which must be positive and finite."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < SQRT_HALF
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    f = (mantissa - 1) / (mantissa + 1)
    square = f * f
    series = np.zeros_like(f)
    for n in reversed(range(LOG_TERMS)):
        series = series * square + 1 / (2 * n + 1)
    return exponent * LN2_HIGH + (2 * f * series + exponent * LN2_LOW)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """`(n, classes) float64` -> log of the softmax over the classes, added up from the first to the last."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - log(exp(shifted).cumsum(1)[:, -1:])


def mean(values: Iterable[float]) -> float:
    """The correctly rounded sum of finite values, divided by their number: no order and no chunk can change it."""
    values = list(values)
    return math.fsum(values) / len(values)
