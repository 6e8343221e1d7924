"""Tables in Markdown."""

import doctest

import pytest

from approx_env import markdown


def test_a_table():
    assert markdown.table(("a", "b"), [("1", 2), ("x", None)]) == "| a | b |\n|---|---|\n| 1 | 2 |\n| x | None |"


def test_a_table_without_rows():
    assert markdown.table(("a",), []) == "| a |\n|---|"


def test_a_cell_stays_a_cell():
    assert markdown.table(("a",), [("x | y\n\nz",)]).splitlines()[-1] == r"| x \| y z |"


@pytest.mark.parametrize("row", [(), ("1",), ("1", "2", "3")])
def test_a_row_has_a_cell_for_each_head(row):
    with pytest.raises(ValueError, match="a row needs 2 cells"):
        markdown.table(("a", "b"), [row])


def test_the_example():
    assert doctest.testmod(markdown).failed == 0
