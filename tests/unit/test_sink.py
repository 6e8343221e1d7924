"""The writer of a run, driven without Ray."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from search.results import lease, sink, store
from search.results.folder import Folder
from search.results.sink import Progress, RunInfo
from search.workers.losses import LOSSES_TOLERATED, ScoringFailed

LAYERS, TMAX = ("conv1", "fire2"), (35, 255)
INFO = RunInfo("r", "squeezenet", "digits", LAYERS, TMAX, 32)
HANGS_SECONDS = 120  # no machine is that slow


def message(episode: int, codes: int = 0, value: float = 0.5, trial: str = "random-seed0") -> dict:
    """What a recorder sends: configuration number `codes`, with return `value`."""
    outcome = {name: 0.25 for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at")}
    outcome |= {"return": value, "shares": [0.25] * 4, "layer_shares": [[0.25] * 4] * 2}
    costs = ("zero_natural", "covered", "relative_energy_sites", "relative_energy", "mac_exact_all")
    outcome |= dict.fromkeys(costs, 0.5)
    return {
        "trial": trial,
        "algorithm": "random",
        "seed": int(trial[-1]),
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
    """Nothing is written but by `flush()`, unless a test wants it; and however slow the disk is, it is waited for."""
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(sink, "PATIENCE_SECONDS", 3600.0)


def drive(folder: Path, script, top: int = 3):
    """Runs `script(sink)` in an event loop, as Ray runs an asynchronous actor."""

    async def whole():
        return await script(sink._Sink(Folder(folder), INFO, b"where the problem lies", top))

    return asyncio.run(whole())


async def send(actor: sink._Sink, *messages: dict) -> None:
    """Sends messages as a recorder does: all at once, then a flush, then the answers."""
    answers = [asyncio.ensure_future(actor.add(message)) for message in messages]
    await asyncio.sleep(0)
    await actor.flush()
    await asyncio.wait_for(asyncio.gather(*answers), HANGS_SECONDS)


async def received(actor: sink._Sink, *messages: dict) -> list[asyncio.Future]:
    """Sends messages; returns when the sink has taken them, with the answers to come."""
    answers = [asyncio.ensure_future(actor.add(message)) for message in messages]
    await asyncio.sleep(0)
    await actor.written([])  # waits for the same beginning as they, and in turn
    return answers


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(HANGS_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


def ids(rows: list[dict]) -> list[str]:
    return [row["episode_id"] for row in rows]


def rows_in(folder: Path) -> list[dict]:
    return sorted(store.read_rows(Folder(folder)), key=lambda row: (row["trial"], row["episode"]))


def test_a_row_has_what_the_run_shares_and_what_the_episode_says(folder):
    drive(folder, lambda actor: send(actor, message(4, codes=3, value=0.75)))
    (row,) = rows_in(folder)
    assert set(row) == set(store.schema(LAYERS).names)
    assert (row["run"], row["model"], row["dataset"], row["search_images"]) == ("r", "squeezenet", "digits", 32)
    assert (row["trial"], row["episode_id"], row["episode"]) == ("random-seed0", "random-seed0-4", 4)
    assert store.codes_of(row, LAYERS) == ((1, 2, 3, 7, 35), (5, 6, 7, 8, 255))
    assert (row["conv1_tmax"], row["fire2_tmax"], row["return"], row["mac_v1"]) == (35, 255, 0.75, 0.25)
    assert row["time"].timestamp() * 1000 == 1_700_000_000_004


def test_add_answers_when_the_row_is_on_disk_and_not_before(folder):
    async def script(actor):
        (answer,) = await received(actor, message(0))
        progress = await actor.progress()
        waiting = answer.done(), len(rows_in(folder)), progress.configurations, progress.finished
        await actor.flush()
        await asyncio.wait_for(answer, HANGS_SECONDS)
        return waiting, len(rows_in(folder))

    assert drive(folder, script) == ((False, 0, 0, 1), 1)


def test_what_waits_is_written_regularly(folder, monkeypatch):
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 0.01)
    drive(folder, lambda actor: asyncio.wait_for(actor.add(message(0)), HANGS_SECONDS))
    assert len(rows_in(folder)) == 1


def test_an_episode_is_written_once_however_often_it_is_sent(folder):
    async def script(actor):
        await send(actor, message(0), message(1), message(0))
        await send(actor, message(1), message(2))
        return await actor.progress()

    progress = drive(folder, script)
    assert [row["episode"] for row in rows_in(folder)] == [0, 1, 2]
    assert (progress.configurations, progress.trials) == (3, {"random-seed0": 3})


def test_a_trial_s_scores_are_those_of_its_own_rows_on_disk_of_the_first_rung(folder):
    async def script(actor):
        other, higher = message(0, value=0.1, trial="random-seed1"), message(0, value=0.2) | {"search_images": 64}
        higher["episode_id"] += "@64"
        await send(actor, message(0, value=0.7), message(1, value=0.8), other, higher)
        waiting = asyncio.ensure_future(actor.add(message(2)))
        await asyncio.sleep(0)
        scores = await actor.scores("random-seed0")
        waiting.cancel()
        return scores

    scores = drive(folder, script)
    assert {name: score["return"] for name, score in scores.items()} == {"random-seed0-0": 0.7, "random-seed0-1": 0.8}
    assert scores["random-seed0-1"]["kd"] == 0.25


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
    assert progress_again == replace(progress, rate=0.0)
    assert progress_again.trials == {"random-seed0": 5, "random-seed1": 1}
    assert [row["return"] for row in top_after] == [0.97, 0.95, 0.4]
    assert progress_after.configurations == len(rows_in(folder)) == 7  # episode 4 was there before


def fail_to_write(monkeypatch, times: int) -> None:
    """Makes the next `times` parts fail."""
    write, left = store.Part.write, iter(range(times))

    def fails(*arguments):
        if next(left, None) is not None:
            raise OSError("no space left on device")
        return write(*arguments)

    monkeypatch.setattr(store.Part, "write", fails)


def test_what_cannot_be_written_waits_for_the_next_attempt_and_is_told(folder, monkeypatch):
    fail_to_write(monkeypatch, 2)

    async def script(actor):
        answers = [asyncio.ensure_future(actor.add(message(k))) for k in range(2)]
        await asyncio.sleep(0)
        assert not await actor.flush()
        during = await actor.progress()
        assert not await actor.flush()
        assert [answer.done() for answer in answers] == [False, False] and rows_in(folder) == []
        await send(actor, message(2))
        await asyncio.wait_for(asyncio.gather(*answers), HANGS_SECONDS)
        return during, await actor.progress()

    during, after = drive(folder, script)
    assert (during.configurations, during.waiting, during.trouble) == (0, 2, "OSError: no space left on device")
    assert [row["episode"] for row in rows_in(folder)] == [0, 1, 2]
    assert (after.configurations, after.finished, after.waiting, after.trouble) == (3, 3, 0, None)


def test_what_a_write_left_in_a_folder_that_went_away_is_removed_when_it_is_back(folder, monkeypatch):
    async def script(actor):
        fail_to_write(monkeypatch, 1)
        waiting = asyncio.create_task(actor.add(message(0)))
        await asyncio.sleep(0)
        assert not await actor.flush()
        (folder / store.EPISODES / ".part-0.parquet.0.tmp").touch()
        (folder / ".top.parquet.0.tmp").touch()
        assert await actor.flush()
        await waiting

    drive(folder, script)
    assert not list(folder.rglob("*.tmp"))


def test_regular_writing_goes_on_after_a_failure(folder, monkeypatch):
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 0.01)
    fail_to_write(monkeypatch, 2)
    drive(folder, lambda actor: asyncio.wait_for(actor.add(message(0)), HANGS_SECONDS))
    assert [row["episode"] for row in rows_in(folder)] == [0]


def test_top_and_promoted_wait_until_storage_is_back(folder, monkeypatch):
    monkeypatch.setattr(sink, "RETRY_SECONDS", 0.01)
    fail_to_write(monkeypatch, 2)

    async def script(actor):
        asyncio.ensure_future(actor.add(message(0)))  # noqa: RUF006
        await asyncio.sleep(0)
        return await asyncio.wait_for(actor.top(), HANGS_SECONDS), await actor.promoted(32, 64)

    top, (promoted, among) = drive(folder, script)
    assert ids(top) == ids(promoted) == ["random-seed0-0"] and among == 1


def test_a_sink_that_starts_while_storage_fails_waits_for_it(folder, monkeypatch):
    drive(folder, lambda actor: send(actor, message(0)))
    monkeypatch.setattr(sink, "RETRY_SECONDS", 0.01)
    read, left = store.read_rows, iter(range(2))

    def fails(folder):
        if next(left, None) is not None:
            raise OSError("stale file handle")
        return read(folder)

    monkeypatch.setattr(store, "read_rows", fails)

    async def script(actor):
        return await actor.written(["random-seed0-0", "random-seed0-1"]), await actor.progress()

    written, progress = drive(folder, script)
    assert written == {"random-seed0-0"} and progress.configurations == 1


def test_the_last_files_wait_for_storage_too(folder, monkeypatch):
    monkeypatch.setattr(sink, "RETRY_SECONDS", 0.01)
    write, left = Folder.write, iter(range(2))

    def fails(*arguments):
        if next(left, None) is not None:
            raise OSError("disk full")
        write(*arguments)

    monkeypatch.setattr(Folder, "write", fails)
    drive(folder, lambda actor: asyncio.wait_for(actor.write({store.TOP: b"top", store.BEST: b"best"}), HANGS_SECONDS))
    assert [(folder / name).read_bytes() for name in (store.TOP, store.BEST)] == [b"top", b"best"]


def test_files_are_saved_with_the_next_flush_and_found_again(folder):
    async def before(actor):
        await actor.save("ppo.safetensors", b"old")
        await actor.save("ppo.safetensors", b"new")
        unwritten = await actor.saved("ppo.safetensors"), (folder / "ppo.safetensors").exists()
        assert await actor.flush()
        return unwritten

    async def after(actor):
        return await actor.saved("ppo.safetensors"), await actor.saved("other")

    assert drive(folder, before) == (b"new", False)
    assert drive(folder, after) == (b"new", None)


def test_a_part_that_was_stored_though_its_writing_failed_is_there_once(folder, monkeypatch):
    """As when the answer of an object store is lost."""
    write, left = store.Part.write, iter(range(1))

    def fails_afterwards(*arguments):
        write(*arguments)
        if next(left, None) is not None:
            raise OSError("connection reset")

    monkeypatch.setattr(store.Part, "write", fails_afterwards)

    async def script(actor):
        answer = asyncio.ensure_future(actor.add(message(0)))
        await asyncio.sleep(0)
        assert not await actor.flush()
        await send(actor, message(1))
        await asyncio.wait_for(answer, HANGS_SECONDS)

    drive(folder, script)
    assert [row["episode"] for row in rows_in(folder)] == [0, 1]


def test_a_sink_whose_run_another_driver_has_taken_writes_no_more(folder):
    async def script():
        actor = sink._Sink(Folder(folder), INFO, b"", 3, lease.me())
        await send(actor, message(0))
        await until((folder / lease.FILE).exists)  # it has said for the last time that it is alive
        lease.beat(Folder(folder), lease.me())
        _answer = await received(actor, message(1))
        assert not await actor.flush()
        return await actor.progress()

    progress = asyncio.run(script())
    assert progress.lost and (progress.configurations, progress.waiting) == (1, 1)
    assert "another driver" in progress.trouble
    assert [row["episode"] for row in rows_in(folder)] == [0]


def test_a_closed_sink_has_written_what_came_before_and_writes_nothing_after(folder):
    async def script(actor):
        asyncio.ensure_future(actor.add(message(0)))  # noqa: RUF006
        await asyncio.sleep(0)
        await actor.close()
        asyncio.ensure_future(actor.add(message(1)))  # noqa: RUF006
        await asyncio.sleep(0)
        return await actor.flush(), await actor.progress()

    written, progress = drive(folder, script)
    assert (written, progress.configurations, progress.waiting) == (False, 1, 1)
    assert [row["episode"] for row in rows_in(folder)] == [0]


def test_a_closed_sink_lets_the_lease_go(folder, monkeypatch):
    """A beat that is under way ends before, so that none comes after the lease was given back."""
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 0.01)
    owner, beat, begun, go_on = lease.me(), lease.beat, threading.Event(), threading.Event()

    def slow(folder, owner):
        begun.set()
        assert go_on.wait(60)
        beat(folder, owner)

    async def script():
        lease.beat(Folder(folder), owner)
        monkeypatch.setattr(lease, "beat", slow)
        actor = sink._Sink(Folder(folder), INFO, b"", 3, owner)
        await until(begun.is_set)
        closing = asyncio.ensure_future(actor.close())
        await asyncio.sleep(0.1)
        waits = not closing.done()
        go_on.set()
        await closing
        lease.release(Folder(folder), owner)
        await asyncio.sleep(0.1)  # ten beats
        return waits

    assert asyncio.run(script())
    assert not (folder / lease.FILE).exists()


def test_what_a_sink_left_that_was_killed_while_it_wrote_is_removed(folder):
    parts = folder / store.EPISODES
    left = [folder / ".top.parquet.0123.tmp", parts / ".part-4567.parquet.89ab.tmp"]
    for path in left:
        path.write_bytes(b"PAR1")
    drive(folder, lambda actor: send(actor, message(0)))
    assert not any(path.exists() for path in left)
    assert len(list(parts.iterdir())) == 1


def test_the_lease_is_kept_alive(folder, monkeypatch):
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 0.01)
    owner, beat, beaten, read = lease.me(), lease.beat, [], threading.Event()

    def count(folder, owner):
        beat(folder, owner)
        beaten.append(folder.read_json(lease.FILE)["token"])

    monkeypatch.setattr(lease, "beat", count)
    monkeypatch.setattr(store, "read_rows", lambda folder: read.wait() and [])  # it has much to read

    async def script():
        actor = sink._Sink(Folder(folder), INFO, b"", 3, owner)
        try:
            await until(lambda: len(beaten) > 3)
            assert not actor._ready.done()
        finally:
            read.set()

    asyncio.run(script())
    assert set(beaten) == {owner.token}


def test_a_sink_that_wakes_up_after_another_driver_has_ended_writes_no_more(folder, monkeypatch):
    owner, other = lease.me(), lease.me()
    (folder / store.RUN).write_text("{}")

    async def script():
        lease.beat(Folder(folder), owner)
        actor = sink._Sink(Folder(folder), INFO, b"", 3, owner)
        lease.beat(Folder(folder), other)
        lease.release(Folder(folder), other)
        _answer = await received(actor, message(0))
        return await actor.flush(), await actor.progress()

    written, progress = asyncio.run(script())
    assert not written and progress.lost and rows_in(folder) == []
    assert not (folder / lease.FILE).exists()


def test_a_row_sent_again_while_it_waits_is_answered_when_it_is_on_disk(folder):
    async def script(actor):
        answers = await received(actor, message(0), message(0))
        waiting = [answer.done() for answer in answers]
        await actor.flush()
        await asyncio.wait_for(asyncio.gather(*answers), HANGS_SECONDS)
        return waiting

    assert drive(folder, script) == [False, False]
    assert len(rows_in(folder)) == 1


def test_a_caller_that_gives_up_does_not_take_the_answer_from_the_others(folder):
    async def script(actor):
        await actor.flush()
        first, second = (asyncio.ensure_future(actor.add(message(k))) for k in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        await actor.flush()
        await asyncio.wait_for(second, HANGS_SECONDS)

    drive(folder, script)
    assert len(rows_in(folder)) == 2


def test_the_senders_row_stays_as_it_is(folder):
    sent = message(0)
    drive(folder, lambda actor: send(actor, sent))
    assert sent == message(0)


def test_a_malformed_row_is_refused_and_keeps_no_other_back(folder):
    async def script(actor):
        with pytest.raises(KeyError):
            await actor.add({"episode_id": "x", "trial": "t"})
        await send(actor, message(0))

    drive(folder, script)
    assert len(rows_in(folder)) == 1


def again(episode: int, images: int, codes: int, value: float) -> dict:
    """What promotion sends: a configuration scored once more, on `images` images."""
    sent = message(episode, codes, value)
    return sent | {"episode_id": f"{sent['episode_id']}@{images}", "search_images": images}


def test_only_rows_of_the_highest_rung_are_candidates_for_the_top(folder):
    low = [message(k, codes=k, value=k / 10) for k in range(6)]  # 32 images, as INFO says
    high = [again(k, 64, codes=k, value=-k / 10) for k in (5, 4)]

    async def script(actor):
        await send(actor, *low)
        before = await actor.progress()
        answer = asyncio.ensure_future(actor.add(high[0]))
        await asyncio.sleep(0)
        begun = await actor.progress()
        await actor.flush()
        await answer
        await send(actor, high[1])
        return before, begun, await actor.progress(), await actor.top()

    before, begun, after, top = drive(folder, script)
    assert [(row["episode_id"], row["search_images"]) for row in top] == [
        ("random-seed0-4@64", 64), ("random-seed0-5@64", 64)
    ]  # fmt: skip
    assert ids(pq.read_table(folder / store.TOP).to_pylist()) == ids(top)
    told = [(state.images, state.finished, state.best_return) for state in (before, begun, after)]
    assert told == [(32, 6, 0.5), (64, 1, None), (64, 2, -0.4)]
    assert before.configurations == after.configurations == 6 and after.trials == {"random-seed0": 6}
    restarted = drive(folder, lambda actor: actor.progress())
    assert (restarted.configurations, restarted.images, restarted.finished) == (6, 64, 2)
    assert ids(drive(folder, lambda actor: actor.top())) == ids(top)


def test_promoted_are_the_best_of_their_rung_whatever_was_scored_on_others(folder):
    async def script(actor):
        await send(actor, *(message(k, codes=k, value=k / 10) for k in range(20)))
        await send(actor, *(message(k, codes=k, value=k / 10, trial="random-seed1") for k in range(20)))
        first = await actor.promoted(32, 64)
        await send(actor, *(again(k, 64, codes=k, value=-k / 10) for k in range(10, 20)))
        return first, await actor.promoted(32, 64), await actor.promoted(64, 256)

    first, same, (second, among) = drive(folder, script)
    assert first == same and first[1] == 20
    assert ids(first[0]) == [f"random-seed0-{k}" for k in range(19, 9, -1)]  # 20 * 32 / 64
    assert ids(second) == [f"random-seed0-{k}@64" for k in (10, 11, 12)] and among == 10


def test_progress_of_a_fresh_run(folder):
    progress = drive(folder, lambda actor: actor.progress())
    assert progress == Progress(0, {}, 32, 0, None, 0.0, 0, None, False)


def test_the_problem_is_handed_out_as_it_came(folder):
    assert drive(folder, lambda actor: actor.problem()) == b"where the problem lies"


def test_names():
    assert sink.actor_name("a") != sink.actor_name("b")
    assert sink.trial_name("ppo", 3) == "ppo-seed3"


def test_env_runners_that_start_again_and_again_are_refused(folder):
    async def script(actor):
        for _ in range(2 + 2 * LOSSES_TOLERATED):
            await actor.starting("ppo-seed0", 2)
            await actor.starting("ppo-seed1", 20)
        with pytest.raises(ScoringFailed, match="lost 11 times in a row"):
            await actor.starting("ppo-seed0", 2)
        await actor.starting("ppo-seed1", 20)  # its own count

    drive(folder, script)


def test_a_row_shows_that_env_runners_can_work(folder):
    async def script(actor):
        for k in range(3):
            for _ in range(LOSSES_TOLERATED):
                await actor.starting("random-seed0", 1)
            await send(actor, message(k))
        for _ in range(LOSSES_TOLERATED):
            await actor.starting("random-seed0", 1)
        with pytest.raises(ScoringFailed):
            await actor.starting("random-seed0", 1)

    drive(folder, script)


def test_why_env_runners_cannot_start_is_kept(folder):
    async def script(actor):
        await actor.refuse("ppo-seed0", ScoringFailed("no memory"))
        return await actor.refused("ppo-seed0"), await actor.refused("ppo-seed1")

    reason, none = drive(folder, script)
    assert str(reason) == "no memory" and none is None
