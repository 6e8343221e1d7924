"""The books of a run, without Ray, files or a clock."""

from dataclasses import replace

import pytest

from search.results import ledger, store
from tests.unit.test_sink import INFO, LAYERS, again, ids, message


@pytest.fixture
def books() -> ledger.Ledger:
    return ledger.Ledger(INFO, 3)


def receive(books: ledger.Ledger, *messages: dict, now: float = 0.0) -> list[dict]:
    """Takes messages and settles all that waits."""
    for sent in messages:
        books.receive(sent, now)
    rows = list(books.waiting.values())
    books.settle(rows)
    return rows


def test_a_new_ledger_is_empty(books):
    assert books.progress() == ledger.Progress(0, {}, 32, 0, None, 0.0, 0, None, False)
    assert (books.waiting, books.top, books.written(["random-seed0-0"])) == ({}, [], set())


def test_a_row_has_all_columns():
    row = ledger.complete(INFO, message(4, codes=3, value=0.75))
    assert set(row) == set(store.schema(LAYERS).names)
    assert (row["run"], row["search_images"], row["return"], row["conv1_v2"]) == ("r", 32, 0.75, 7)


def test_what_is_received_waits_until_it_is_settled(books):
    books.receive(message(0), 1.0)
    assert list(books.waiting) == ["random-seed0-0"] and books.written(["random-seed0-0"]) == set()
    before = books.progress()
    assert (before.configurations, before.finished, before.waiting, before.best_return) == (0, 1, 1, None)
    books.settle(list(books.waiting.values()))
    after = books.progress()
    assert (after.configurations, after.finished, after.waiting, after.best_return) == (1, 1, 0, 0.5)
    assert books.written(["random-seed0-0", "x"]) == {"random-seed0-0"}


def test_a_row_counts_once_however_often_it_comes(books):
    receive(books, message(0), message(0))
    receive(books, message(0), message(1))
    progress = books.progress()
    assert (progress.configurations, progress.finished, progress.trials) == (2, 2, {"random-seed0": 2})


def test_a_malformed_message_changes_nothing(books):
    with pytest.raises(KeyError):
        books.receive({"episode_id": "x", "trial": "t"}, 0.0)
    assert books.progress() == ledger.Ledger(INFO, 3).progress()


def test_the_message_stays_as_it_is(books):
    sent = message(0)
    receive(books, sent)
    assert sent == message(0)


def test_the_rate_is_that_of_the_configurations_after_the_first(books):
    rates = []
    for episode, now in enumerate((5.0, 7.0, 9.0, 11.0)):
        books.receive(message(episode), now)
        rates.append(books.progress().rate)
    assert rates == [0.0, 0.5, 0.5, 0.5]


def test_two_configurations_at_the_same_moment_have_no_rate(books):
    receive(books, message(0), message(1), now=3.0)
    assert books.progress().rate == 0.0


def test_the_top_is_distinct_and_in_order(books):
    values = [(1, 0.1), (2, 0.9), (3, 0.3), (2, 0.9), (4, 0.5), (5, 0.7)]
    receive(books, *(message(k, codes, value) for k, (codes, value) in enumerate(values)))
    assert [row["return"] for row in books.top] == [0.9, 0.7, 0.5]


def test_restored_rows_count_as_written_and_have_no_rate(books):
    rows = receive(books, *(message(k, k, k / 10) for k in range(4)), message(0, 9, 0.95, "random-seed1"))
    other = ledger.Ledger(INFO, 3)
    other.restore(rows)
    assert other.progress() == books.progress() and ids(other.top) == ids(books.top)
    other.receive(message(3), 1.0)
    assert other.waiting == {}


def test_a_row_of_an_older_run_took_all_layers(books):
    rows = receive(books, message(0), message(1) | {"layer_forwards": 1})
    assert books.progress().layer_forwards == len(LAYERS) + 1
    older = [{name: value for name, value in row.items() if name not in store.FORWARDS} for row in rows]
    other = ledger.Ledger(INFO, 3)
    other.restore(older)
    assert other.progress().layer_forwards == 2 * len(LAYERS)


def test_a_higher_rung_begins_anew(books):
    receive(books, *(message(k, k, k / 10) for k in range(4)), now=1.0)
    books.receive(again(3, 64, 3, -0.3), 10.0)
    begun = books.progress()
    assert (begun.images, begun.finished, begun.best_return, begun.rate) == (64, 1, None, 0.0)
    books.receive(again(2, 64, 2, -0.2), 12.0)
    receive(books)
    after = books.progress("away", True)
    assert (after.images, after.finished, after.best_return, after.rate) == (64, 2, -0.2, 0.5)
    assert (after.configurations, after.trouble, after.lost) == (4, "away", True)
    assert ids(books.top) == ["random-seed0-2@64", "random-seed0-3@64"]


def test_a_row_of_a_lower_rung_that_comes_late_is_no_candidate(books):
    receive(books, message(0, 0, 0.1), again(0, 64, 0, 0.0))
    receive(books, message(1, 1, 0.9))
    assert ids(books.top) == ["random-seed0-0@64"]
    assert (books.progress().configurations, books.progress().finished) == (2, 1)


def test_promoted_are_taken_from_their_rung_alone(books):
    rows = receive(books, *(message(k, k, k / 10) for k in range(8)), again(7, 64, 7, 0.0))
    kept, among = books.promoted(rows, 32, 64)
    assert (ids(kept), among) == ([f"random-seed0-{k}" for k in (7, 6, 5, 4)], 8)


def of(share: float, **sent) -> dict:
    """A message of a configuration of which this share stays exact."""
    made = message(**sent)
    made["outcome"]["mac_exact_all"] = share
    return made


def test_what_exceeds_the_budget_is_kept_as_a_row_and_is_never_among_the_best():
    books = ledger.Ledger(replace(INFO, budget_exact=0.5), 3)
    receive(books, of(0.6, episode=0, codes=1, value=0.9))
    assert (books.top, books.progress().best_return, books.progress().configurations) == ([], None, 1)
    rows = receive(books, of(0.5, episode=1, codes=2, value=0.3), of(0.51, episode=2, codes=3, value=0.8))
    assert ids(books.top) == ["random-seed0-1"] and books.progress().best_return == 0.3
    kept, among = books.promoted([*rows, *rows], 32, 64)
    assert (ids(kept), among) == (["random-seed0-1"], 1)


def test_a_rung_on_which_none_keeps_the_budget_leaves_no_best():
    books = ledger.Ledger(replace(INFO, budget_exact=0.5), 3)
    receive(books, of(0.4, episode=0, codes=1))
    higher = again(0, 64, 1, 0.0)
    higher["outcome"]["mac_exact_all"] = 0.6
    receive(books, higher)
    assert books.top == []


def test_the_best_of_a_front_are_the_front_and_so_many_of_it_that_lie_far_apart():
    books = ledger.Ledger(replace(INFO, front=True), 3)
    values = [(0.9, 0.9), (0.88, 0.85), (0.5, 0.5), (0.4, 0.6), (0.1, 0.1)]
    for k, (value, share) in enumerate(values):
        receive(books, of(share, episode=k, codes=k, value=value))
    assert ids(books.top) == [f"random-seed0-{k}" for k in (0, 2, 4)]
    assert books.progress().best_return == 0.9
    receive(books, of(0.2, episode=5, codes=5, value=0.6))  # the point in the middle is beaten, the crowded one comes
    assert ids(books.top) == [f"random-seed0-{k}" for k in (0, 5, 4)]
    rows = [row for row in books.top]
    other = ledger.Ledger(replace(INFO, front=True), 3)
    other.restore(rows[::-1])
    assert ids(other.top) == ids(books.top)


def test_each_search_has_its_own_best_on_the_highest_rung(books):
    other = message(0, codes=1, value=0.25, trial="random-seed1")
    receive(books, message(0, value=0.5), message(1, codes=2, value=0.375), other)
    books.receive(message(2, codes=3, value=0.75), 0.0)
    assert books.progress().searches == {
        "random-seed0": ledger.Searched(3, 0.5, 0.25),  # the third is not written yet
        "random-seed1": ledger.Searched(1, 0.25, 0.25),
    }
    receive(books, message(0, value=0.125) | {"episode_id": "random-seed0-0@64", "search_images": 64})
    assert books.progress().searches == {"random-seed0": ledger.Searched(1, 0.125, 0.25)}


def test_what_exceeds_the_budget_is_no_searchs_best():
    books = ledger.Ledger(replace(INFO, budget_exact=0.25), 3)
    receive(books, message(0))
    assert books.progress().searches == {"random-seed0": ledger.Searched(1, None, None)}
