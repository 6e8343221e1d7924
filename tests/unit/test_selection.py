"""What is kept and what is chosen, by hand."""

import pytest

from search import selection


def row(codes: tuple, value: float, name: str = "") -> dict:
    return {"codes": codes, "return": value, "name": name}


def identity(row: dict) -> tuple:
    return row["codes"]


def test_best_come_first_and_each_configuration_once():
    rows = [row((1,), 0.2), row((2,), 0.9), row((1,), 0.2), row((3,), 0.5), row((2,), 0.9)]
    assert [kept["codes"] for kept in selection.best(rows, 30, identity)] == [(2,), (3,), (1,)]


def test_no_more_than_count_are_kept():
    rows = [row((k,), k / 10) for k in range(10)]
    assert [kept["codes"] for kept in selection.best(rows, 3, identity)] == [(9,), (8,), (7,)]


def test_equal_returns_are_ordered_by_their_codes():
    rows = [row((3,), 0.5), row((1,), 0.5), row((2,), 0.5)]
    assert [kept["codes"] for kept in selection.best(rows, 2, identity)] == [(1,), (2,)]


def test_best_of_nothing_is_nothing():
    assert selection.best([], 30, identity) == []


@pytest.mark.parametrize(
    ("accuracies", "drops", "chosen"),
    [
        ([0.90, 0.92, 0.91], [2.0, 0.5, 1.0], (1, True)),  # the most accurate of those within
        ([0.95, 0.90, 0.91], [2.1, 2.0, 1.9], (2, True)),  # 2.1 points are too many, whatever the accuracy
        ([0.90], [2.0], (0, True)),  # the limit itself is within
        ([0.80, 0.85, 0.82], [9.0, 4.0, 7.0], (1, False)),  # none within: the most accurate of all
        ([0.90, 0.92, 0.92], [2.0, 0.0, 0.0], (1, True)),  # a tie goes to the higher search return
        ([0.80, 0.80], [9.0, 9.0], (0, False)),
        ([0.90, 0.93], [1.0, -2.0], (1, True)),  # a student may be better than its teacher
    ],
)
def test_choose(accuracies, drops, chosen):
    assert selection.choose(accuracies, drops, 2.0) == chosen
