"""Laws of the top-N, for rows whose return follows from their codes, as in one search problem."""

from hypothesis import given
from hypothesis import strategies as st

from search.results import selection

RETURNS = (0.5, 0.25, 0.5, -1.0, 0.75, 0.5, 0.0)  # some of them equal
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 2), st.integers(0, 20)).map(
        lambda drawn: {
            "codes": drawn[:2],
            "return": RETURNS[(5 * drawn[0] + drawn[1]) % len(RETURNS)],
            "seed": drawn[2],
            "episode": drawn[3],
        }
    ),
    max_size=60,
)
COUNTS = st.integers(1, 35)


def best(rows: list[dict], count: int) -> list[dict]:
    return selection.best(rows, count, lambda row: row["codes"])


@given(st.data(), ROWS, COUNTS)
def test_the_order_of_rows_does_not_matter(data, rows, count):
    assert best(data.draw(st.permutations(rows)), count) == best(rows, count)


@given(ROWS, COUNTS)
def test_the_best_are_distinct_sorted_and_as_many_as_there_are(rows, count):
    kept = best(rows, count)
    codes = [row["codes"] for row in kept]
    returns = [row["return"] for row in kept]
    distinct = {row["codes"] for row in rows}
    assert len(codes) == len(set(codes)) == min(count, len(distinct))
    assert returns == sorted(returns, reverse=True)


@given(ROWS, COUNTS)
def test_nothing_left_out_is_better_than_what_is_kept(rows, count):
    kept = best(rows, count)
    codes = {row["codes"] for row in kept}
    left = [row["return"] for row in rows if row["codes"] not in codes]
    assert not left or max(left) <= kept[-1]["return"]


@given(st.lists(ROWS, max_size=5), COUNTS)
def test_keeping_the_best_along_the_way_gives_the_same_as_ranking_all_at_the_end(parts, count):
    kept: list[dict] = []
    for part in parts:
        kept = best([*kept, *part], count)
    assert kept == best([row for part in parts for row in part], count)


@given(st.data(), ROWS, st.integers(1, 64), st.integers(1, 64), COUNTS)
def test_promotion_does_not_depend_on_row_order_and_costs_no_more_than_its_rung(data, rows, images, growth, least):
    more = images + growth
    kept, among = selection.promoted(rows, images, more, least, lambda row: row["codes"])
    assert selection.promoted(data.draw(st.permutations(rows)), images, more, least, lambda row: row["codes"]) == (
        kept, among
    )  # fmt: skip
    assert kept == best(rows, len(kept))
    assert among == len({row["codes"] for row in rows})
    assert min(least, among) <= len(kept) <= among
    assert len(kept) <= least or (len(kept) - 1) * more < among * images


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-100, 100)), min_size=1, max_size=30),
    st.floats(0, 100),
)
def test_the_chosen_one_has_the_highest_accuracy_of_those_that_may_be_chosen(scores, limit):
    accuracies, drops = zip(*scores, strict=True)
    position, within = selection.choose(accuracies, drops, limit)
    allowed = [accuracy for accuracy, drop in scores if drop <= limit]
    assert within == bool(allowed)
    assert accuracies[position] == max(allowed or accuracies)
    assert drops[position] <= limit or not within


# -- fronts

SHARES = (0.5, 0.25, 0.75, 0.5, 0.125)
POINTS = st.lists(st.tuples(st.floats(-3, 1), st.floats(0, 1)), max_size=40)
FRONT_ROWS = ROWS.map(lambda rows: [row | {"mac_exact_all": SHARES[sum(row["codes"]) % 5]} for row in rows])


def beats(one: tuple, other: tuple) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


@given(POINTS)
def test_the_fast_front_is_the_one_by_comparing_all_pairs(points):
    kept = selection.front(points)
    assert {points[k] for k in kept} == {one for one in points if not any(beats(other, one) for other in points)}
    values = [points[k][0] for k in kept]
    assert values == sorted(set(values), reverse=True)


@given(POINTS, st.integers(1, 12))
def test_what_is_spread_is_a_part_of_the_front_with_its_ends(points, count):
    members = [points[k] for k in selection.front(points)]
    kept = selection.spread(members, count)
    assert kept == sorted(set(kept)) and len(kept) == min(count, len(members))
    assert not members or kept[0] == 0 and (count == 1 or kept[-1] == len(members) - 1)


@given(st.data(), FRONT_ROWS, st.lists(FRONT_ROWS, max_size=4))
def test_a_front_depends_neither_on_the_order_of_rows_nor_on_when_it_is_looked_for(data, rows, parts):
    def front(rows):
        return selection.best_front(rows, lambda row: row["codes"])

    assert front(data.draw(st.permutations(rows))) == front(rows)
    kept: list[dict] = []
    for part in parts:
        kept = front([*kept, *part])
    assert kept == front([row for part in parts for row in part])


@given(FRONT_ROWS, st.integers(1, 30))
def test_later_fronts_are_beaten_by_earlier_ones_alone(rows, count):
    kept = selection.by_fronts(rows, count, lambda row: row["codes"])
    codes = [row["codes"] for row in kept]
    assert len(codes) == len(set(codes)) == min(count, len({row["codes"] for row in rows}))
    points = [selection.point(row) for row in kept]
    left = [selection.point(row) for row in rows if row["codes"] not in codes]
    assert not any(beats(other, one) for one in points[:1] for other in (*points, *left))
