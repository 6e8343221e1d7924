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
