import numpy as np
import pytest

from approx_env import tap


def test_three_segments_and_identity():
    codes = np.array([[0, 7, 8, 21], [22, 35, 36, 255]], np.uint8)
    approximated = tap.tap(codes, (7, 14, 21, 28), 35)
    assert approximated.dtype == np.uint8
    assert approximated.tolist() == [[0, 0, 14, 14], [28, 28, 36, 255]]


def test_zero_point_shifts_everything():
    codes = np.array([0, 10, 17, 18, 31, 32, 45, 46, 255], np.uint8)
    assert tap.tap(codes, (7, 14, 21, 28), 35, zero_point=10).tolist() == [10, 10, 10, 24, 24, 38, 38, 46, 255]


def test_zero_point_must_leave_room_for_tmax():
    codes = np.arange(4, dtype=np.uint8)
    assert tap.tap(codes, (1, 2, 3, 4), 100, zero_point=155).tolist() == [155] * 4
    for zero_point in (156, -1):
        with pytest.raises(ValueError) as caught:
            tap.tap(codes, (1, 2, 3, 4), 100, zero_point)
        assert str(caught.value) == f"zero_point must lie in 0..155 (255 - tmax), got {zero_point}"


@pytest.mark.parametrize("codes", [(1, 2, 3, 4), (1, 2, 3, 35), (32, 33, 34, 35), np.array([1, 2, 3, 4], np.uint8)])
def test_valid_codes(codes):
    assert tap.problems(codes, 35) == []
    tap.check(codes, 35)


@pytest.mark.parametrize(
    "codes", [(0, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 36), (4, 3, 2, 1), (-1, 2, 3, 4)]
)
def test_codes_out_of_order_name_the_rule(codes):
    expected = "codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = 35, got t1={} v1={} t2={} v2={}".format(*codes)
    assert tap.problems(codes, 35) == [expected]
    with pytest.raises(ValueError) as caught:
        tap.check(codes, 35)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "codes", [(1, 2, 3), (1, 2, 3, 4, 5, 6), (1.0, 2.0, 3.0, 4.0), (True, True, True, True), 7, "abcd"]
)
def test_codes_must_be_four_integers(codes):
    assert tap.problems(codes, 35) == [
        f"codes must be four integers (t1, v1, t2, v2), or five with tmax, got {codes!r}"
    ]


@pytest.mark.parametrize("tmax", [3, 256])
def test_tmax_must_leave_room_for_codes(tmax):
    assert tap.problems((1, 2, 3, 4), tmax) == [f"tmax must lie in 4..255, got {tmax}"]


def test_a_fifth_code_is_tmax_in_place_of_the_layer_s():
    assert tap.problems((1, 2, 3, 40, 40), 35) == tap.problems((1, 2, 3, 4, 255), 35) == []
    assert tap.problems((1, 2, 3, 30, 29), 35) == [
        "codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = 29, got t1=1 v1=2 t2=3 v2=30"
    ]
    assert tap.problems((1, 2, 3, 4, 256), 35) == ["tmax must lie in 4..255, got 256"]


def test_codes_are_completed_by_tmax():
    assert tap.complete([(1, 2, 3, 4), (5, 6, 7, 8)], 9).tolist() == [[1, 2, 3, 4, 9], [5, 6, 7, 8, 9]]
    assert tap.complete([(1, 2, 3, 4, 5)], 9).tolist() == [[1, 2, 3, 4, 5]]
    assert tap.complete(np.array([1, 2, 3, 4], np.uint8), 255).dtype == np.uint8


def test_random_codes_with_tmax_are_uniform_over_all_quintuples():
    drawn = np.array([tap.random_codes_with_tmax(np.random.default_rng(seed)) for seed in range(3000)])
    assert not any(tap.problems(codes, 4) for codes in drawn)
    # t1 and tmax + 1 are the least and the greatest of 5 different numbers in 1..256.
    assert drawn[:, 0].mean() == pytest.approx(257 / 6, rel=0.05)
    assert drawn[:, 4].mean() == pytest.approx(257 * 5 / 6 - 1, rel=0.02)
    assert drawn[:, 4].max() == 255 and (drawn[:, 3] == drawn[:, 4]).any()


def test_quintile():
    assert tap.quintile(35) == (7, 14, 21, 28)
    assert tap.quintile(15) == (3, 6, 9, 12)
    assert tap.quintile(17) == (3, 6, 10, 13)  # rounded down
    assert tap.quintile(255) == (51, 102, 153, 204)


def test_quintile_needs_five_codes():
    with pytest.raises(ValueError, match=r"got t1=0 v1=1 t2=2 v2=3$"):
        tap.quintile(4)


def test_random_codes_are_uniform_over_all_quadruples():
    generator = np.random.default_rng(0)
    assert tap.random_codes(4, generator) == (1, 2, 3, 4)
    drawn = [tap.random_codes(5, generator) for _ in range(5000)]
    counts = {codes: drawn.count(codes) for codes in drawn}
    assert len(counts) == 5
    assert all(900 < count < 1100 for count in counts.values())


def test_random_codes_follow_the_generator():
    first, second = (tap.random_codes(200, np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert all(type(code) is int for code in first)
