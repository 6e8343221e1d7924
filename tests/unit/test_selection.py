"""What is kept and what is chosen, by hand."""

import pytest

from search.results import selection


def row(codes: tuple, value: float, seed: int = 0, episode: int = 0) -> dict:
    return {"codes": codes, "return": value, "seed": seed, "episode": episode}


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


def test_of_equal_configurations_the_lowest_seed_and_its_earliest_episode_is_kept():
    rows = [row((1,), 0.5, seed, episode) for seed, episode in [(2, 0), (1, 7), (1, 3), (3, 1)]]
    (kept,) = selection.best(rows, 30, identity)
    assert (kept["seed"], kept["episode"]) == (1, 3)


def test_without_a_count_all_are_kept():
    assert len(selection.best([row((k,), 0.5) for k in range(100)], None, identity)) == 100


def test_best_of_nothing_is_nothing():
    assert selection.best([], 30, identity) == []
    assert selection.promoted([], 64, 256, 30, identity) == ([], 0)


@pytest.mark.parametrize(
    ("count", "images", "more", "least", "expected"),
    [
        (100, 256, 1024, 1, 25),
        (101, 256, 1024, 1, 26),  # rounded up
        (100, 1000, 1024, 1, 98),  # 97.65...
        (3, 1, 4096, 1, 1),
        (100, 256, 1024, 30, 30),  # never fewer than are validated
        (20, 256, 1024, 30, 20),  # unless there are fewer
        (1, 64, 256, 30, 1),  # quintile
    ],
)
def test_how_many_are_promoted(count, images, more, least, expected):
    rows = [row((k,), k / 1000) for k in range(count)]
    kept, among = selection.promoted(rows, images, more, least, identity)
    assert among == count
    assert [row["codes"] for row in kept] == [(k,) for k in range(count - 1, count - 1 - expected, -1)]


def test_a_configuration_is_promoted_once():
    rows = [row((k % 3,), k % 3 / 10, seed=k // 4, episode=k % 4) for k in range(8)]
    kept, among = selection.promoted(rows, 64, 128, 1, identity)
    assert among == 3
    assert [(row["codes"], row["seed"], row["episode"]) for row in kept] == [((2,), 0, 2), ((1,), 0, 1)]


@pytest.mark.parametrize(
    ("accuracies", "drops", "chosen"),
    [
        ([0.90, 0.92, 0.91], [2.0, 0.5, 1.0], (1, True)),  # the most accurate of those within
        ([0.95, 0.90, 0.91], [2.1, 2.0, 1.9], (2, True)),  # 2.1 points are too many, whatever the accuracy
        ([0.90], [2.0], (0, True)),  # the limit itself is within
        ([0.80, 0.85, 0.82], [9.0, 4.0, 7.0], (1, False)),  # none within: the most accurate of all
        ([0.90, 0.92, 0.92], [2.0, 0.0, 0.0], (1, True)),  # of equals the one with the higher search return
        ([0.80, 0.80], [9.0, 9.0], (0, False)),
        ([0.90, 0.93], [1.0, -2.0], (1, True)),  # a student may be better than its teacher
    ],
)
def test_choose(accuracies, drops, chosen):
    assert selection.choose(accuracies, drops, 2.0) == chosen


# -- fronts


def test_a_front_is_what_nothing_beats_in_both():
    points = [(0.9, 0.5), (0.7, 0.6), (0.8, 0.3), (0.8, 0.4), (0.5, 0.1), (0.5, 0.1), (0.95, 0.9), (0.4, 0.1)]
    assert selection.front(points) == [6, 0, 2, 4]
    assert selection.front([]) == []
    assert selection.front([(0.5, 0.5)] * 3) == [0]


def test_of_a_crowded_front_what_lies_far_apart_is_kept_and_both_ends():
    points = [(1.0, 1.0), (0.98, 0.9), (0.96, 0.88), (0.6, 0.5), (0.02, 0.3), (0.0, 0.0)]
    assert selection.spread(points, 6) == selection.spread(points, 9) == list(range(6))
    assert selection.spread(points, 4) == [0, 3, 4, 5]  # 1 and 2 are near to each other, and to the end
    assert selection.spread(points, 3) == [0, 3, 5]
    assert selection.spread(points, 2) == [0, 5]
    assert selection.spread(points, 1) == [0]
    assert selection.spread([], 3) == []


def point(codes: tuple, value: float, share: float, seed: int = 0) -> dict:
    return row(codes, value, seed) | {"mac_exact_all": share}


def test_a_front_of_rows_has_each_configuration_and_each_point_once():
    rows = [point((2,), 0.9, 0.5), point((2,), 0.9, 0.5, seed=1), point((1,), 0.9, 0.5), point((3,), 0.5, 0.2),
            point((4,), 0.4, 0.3)]  # fmt: skip
    assert [kept["codes"] for kept in selection.best_front(rows, identity)] == [(1,), (3,)]


def test_promotion_by_fronts_takes_one_front_after_the_other():
    rows = [point((k,), value, share) for k, (value, share) in enumerate(
        [(0.9, 0.5), (0.5, 0.1), (0.8, 0.6), (0.6, 0.4), (0.4, 0.2), (0.1, 0.9)])]  # fmt: skip
    ranked = [kept["codes"][0] for kept in selection.by_fronts(rows, 9, identity)]
    assert ranked == [0, 3, 1, 2, 4, 5]
    assert [kept["codes"][0] for kept in selection.by_fronts(rows, 2, identity)] == [0, 1]
    kept, among = selection.promoted(rows, 64, 128, 1, identity, fronts=True)
    assert ([one["codes"][0] for one in kept], among) == ([0, 3, 1], 6)


@pytest.mark.parametrize(
    ("accuracies", "drops", "shares", "chosen"),
    [
        ([0.90, 0.92, 0.91], [2.0, 0.5, 1.0], [0.3, 0.5, 0.4], (0, True)),  # the fewest of those within
        ([0.80, 0.92, 0.91], [9.0, 0.5, 1.0], [0.1, 0.4, 0.4], (1, True)),  # of equals the more accurate one
        ([0.80, 0.85, 0.85], [9.0, 4.0, 4.0], [0.1, 0.5, 0.4], (2, False)),  # none within
    ],
)
def test_choose_few_exact_multiplications(accuracies, drops, shares, chosen):
    assert selection.choose(accuracies, drops, 2.0, shares) == chosen
