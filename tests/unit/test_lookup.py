import numpy as np
import pytest

from approx_env.lookup import Lookup

CODES = np.arange(256, dtype=np.uint8)
KINDS = np.where(CODES == 0, 0, 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "kinds", "words"),
    [
        (CODES[:255], KINDS, "values must be"),
        (CODES.astype(int), KINDS, "values must be"),
        (CODES, KINDS[None], "kinds must be"),
        (CODES[::-1].copy(), KINDS, "never decrease"),
        (CODES, KINDS + np.uint8(1), "kinds must lie"),
        (CODES, np.full(256, 3, np.uint8), "code 0 must be 0"),
    ],
)
def test_a_table_that_engines_could_not_apply_is_refused(values, kinds, words):
    with pytest.raises(ValueError, match=words):
        Lookup(values, kinds)


def test_the_exact_table_is_one():
    assert Lookup(CODES, KINDS).values is CODES
