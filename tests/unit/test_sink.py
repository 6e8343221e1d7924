"""The writer of a run, driven without Ray."""

import asyncio
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from search import sink, store
from search.sink import RunInfo

LAYERS, TMAX = ("conv1", "fire2"), (35, 255)
INFO = RunInfo("r", "squeezenet", "digits", LAYERS, TMAX, 32)


def message(episode: int, codes: int = 0, value: float = 0.5, trial: str = "random-seed0") -> dict:
    """What a recorder sends: configuration number `codes`, with return `value`."""
    outcome = {name: 0.25 for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at")}
    outcome |= {"return": value, "shares": [0.25] * 4, "layer_shares": [[0.25] * 4] * 2}
    return {
        "trial": trial,
        "algorithm": "random",
        "seed": 0,
        "episode_id": f"{trial}-{episode}",
        "episode": episode,
        "time": 1_700_000_000_000 + episode,
        "codes": [[1, 2, 3, 4 + codes], [5, 6, 7, 8]],
        "outcome": outcome,
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / store.EPISODES).mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def never_by_itself(monkeypatch):
    """Nothing is written but by `flush()`, unless a test wants it."""
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 3600.0)


def drive(folder: Path, script, top: int = 3):
    """Runs `script(sink)` in an event loop, as Ray runs an asynchronous actor."""

    async def whole():
        return await script(sink._Sink(str(folder), INFO, b"where the problem lies", top))

    return asyncio.run(whole())


async def send(actor: sink._Sink, *messages: dict) -> None:
    """Sends messages as a recorder does: all at once, then a flush, then the answers."""
    answers = [asyncio.ensure_future(actor.add(message)) for message in messages]
    await asyncio.sleep(0)
    await actor.flush()
    await asyncio.wait_for(asyncio.gather(*answers), 5)


def ids(rows: list[dict]) -> list[str]:
    return [row["episode_id"] for row in rows]


def rows_in(folder: Path) -> list[dict]:
    return sorted(store.read_rows(folder), key=lambda row: (row["trial"], row["episode"]))


def test_a_row_has_what_the_run_shares_and_what_the_episode_says(folder):
    drive(folder, lambda actor: send(actor, message(4, codes=3, value=0.75)))
    (row,) = rows_in(folder)
    assert set(row) == set(store.schema(LAYERS).names)
    assert (row["run"], row["model"], row["dataset"], row["search_images"]) == ("r", "squeezenet", "digits", 32)
    assert (row["trial"], row["episode_id"], row["episode"]) == ("random-seed0", "random-seed0-4", 4)
    assert store.codes_of(row, LAYERS) == ((1, 2, 3, 7), (5, 6, 7, 8))
    assert (row["conv1_tmax"], row["fire2_tmax"], row["return"], row["mac_v1"]) == (35, 255, 0.75, 0.25)
    assert row["time"].timestamp() * 1000 == 1_700_000_000_004


def test_add_answers_when_the_row_is_on_disk_and_not_before(folder):
    async def script(actor):
        answer = asyncio.ensure_future(actor.add(message(0)))
        await asyncio.sleep(0.05)
        progress = await actor.progress()
        waiting = answer.done(), len(rows_in(folder)), progress.rows, progress.finished
        await actor.flush()
        await asyncio.wait_for(answer, 5)
        return waiting, len(rows_in(folder))

    assert drive(folder, script) == ((False, 0, 0, 1), 1)


def test_what_waits_is_written_regularly(folder, monkeypatch):
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 0.01)
    drive(folder, lambda actor: asyncio.wait_for(actor.add(message(0)), 5))
    assert len(rows_in(folder)) == 1


def test_an_episode_is_written_once_however_often_it_is_sent(folder):
    async def script(actor):
        await send(actor, message(0), message(1), message(0))
        await send(actor, message(1), message(2))
        return await actor.progress()

    progress = drive(folder, script)
    assert [row["episode"] for row in rows_in(folder)] == [0, 1, 2]
    assert (progress.rows, progress.trials) == (3, {"random-seed0": 3})


def test_a_flush_of_nothing_writes_nothing(folder):
    drive(folder, lambda actor: actor.flush())
    assert list((folder / store.EPISODES).iterdir()) == []
    assert not (folder / store.TOP).exists()


def test_the_best_are_kept_distinct_and_in_order(folder):
    values = [0.1, 0.9, 0.3, 0.9, 0.5, 0.7]
    codes = [1, 2, 3, 2, 4, 5]  # the second 0.9 is the same configuration again

    async def script(actor):
        sent = [message(k, *pair) for k, pair in enumerate(zip(codes, values, strict=True))]
        await send(actor, *sent[:4])
        await send(actor, *sent[4:])
        return await actor.top(), await actor.progress()

    top, progress = drive(folder, script)
    assert [row["return"] for row in top] == [0.9, 0.7, 0.5]
    assert [row["conv1_v2"] for row in top] == [6, 9, 8]
    assert progress.best_return == 0.9
    assert ids(pq.read_table(folder / store.TOP).to_pylist()) == ids(top)


def test_top_counts_what_is_still_waiting(folder):
    async def script(actor):
        asyncio.ensure_future(actor.add(message(0)))  # noqa: RUF006
        await asyncio.sleep(0)
        return await actor.top()

    assert [row["episode"] for row in drive(folder, script)] == [0]


def test_a_restarted_sink_is_rebuilt_from_disk(folder):
    async def before(actor):
        await send(actor, *(message(k, codes=k, value=k / 10) for k in range(5)))
        await send(actor, message(0, codes=9, value=0.95, trial="random-seed1"))
        return await actor.top(), await actor.progress()

    async def after(actor):
        state = await actor.top(), await actor.progress()
        await send(actor, message(4, codes=4, value=0.4), message(5, codes=5, value=0.97))
        return *state, await actor.top(), await actor.progress()

    top, progress = drive(folder, before)
    again, progress_again, top_after, progress_after = drive(folder, after)
    assert ids(again) == ids(top)
    assert (progress_again.rows, progress_again.trials) == (progress.rows, progress.trials)
    assert progress_again.trials == {"random-seed0": 5, "random-seed1": 1}
    assert [row["return"] for row in top_after] == [0.97, 0.95, 0.4]
    assert progress_after.rows == len(rows_in(folder)) == 7  # episode 4 was there before


def test_progress_of_a_fresh_run(folder):
    progress = drive(folder, lambda actor: actor.progress())
    assert (progress.rows, progress.trials, progress.best_return, progress.rate) == (0, {}, None, 0.0)


def test_the_problem_is_handed_out_as_it_came(folder):
    assert drive(folder, lambda actor: actor.problem()) == b"where the problem lies"


def test_names():
    assert sink.actor_name("a") != sink.actor_name("b")
    assert sink.trial_name("ppo", 3) == "ppo-seed3"
