import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from approx_env import tap
from approx_env.adapt import no_tail

CODES = np.arange(256)


def error(histogram, codes) -> int:
    return int((histogram * (tap.tap(CODES.astype(np.uint8), codes, 255).astype(int) - CODES) ** 2).sum())


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 255), st.integers(1, 1000)), min_size=1, max_size=6), st.randoms())
def test_no_other_codes_have_a_smaller_error(bars, random):
    histogram = np.zeros(256, np.int64)
    for code, count in bars:
        histogram[code] += count
    histogram[0] = 12345  # zeros stay zero
    found = no_tail.least_squares(histogram)
    tap.check(found, 255)
    least = error(histogram, found)
    for _ in range(50):
        other = tuple(sorted(random.sample(range(1, 256), 4)))
        assert error(histogram, other) >= least
        near = tuple(code + random.randint(-1, 1) for code in found)
        if not tap.problems(near, 255):
            assert error(histogram, near) >= least


def test_two_bars_are_met_exactly():
    histogram = np.bincount([10, 10, 200], minlength=256)
    codes = no_tail.least_squares(histogram)
    assert codes[1::2] == (10, 200) and error(histogram, codes) == 0
