"""The command as a person uses it: the other network, several seeds, Ctrl-C."""

import os
import re
import signal
import time

import pandas as pd
import pytest

from tests import command
from tests.command import EPISODES, PPO_ALEXNET, Command

CONVOLUTIONS, LINEARS = [f"conv{k}" for k in range(1, 6)], ["fc1", "fc2"]


def test_alexnet():
    run = command.run(f"{PPO_ALEXNET}2")
    assert run.status == 0, run.errors
    assert "alexnet: 7 layers (5 conv + 2 fc)" in run.output
    assert "conv3, conv4, fc1" in run.output
    assert list(run.json("best.json")["layers"]) == CONVOLUTIONS + LINEARS
    assert all("tmax_code" in layer for layer in run.json("best.json")["layers"].values())
    assert len(run.rows) == EPISODES


def test_several_seeds_are_several_trials_of_one_run():
    run = command.run(f"--layers squeezenet --num-env-runners 1 --algorithm random --episodes {EPISODES} --seeds 0,1")
    assert run.status == 0, run.errors
    assert len(run.rows) == 2 * EPISODES and run.rows["episode_id"].is_unique
    assert run.rows.groupby(["trial", "seed"]).size().to_dict() == {
        ("random-seed0", 0): EPISODES,
        ("random-seed1", 1): EPISODES,
    }
    returns = [set(rows["return"]) for _, rows in run.rows.groupby("seed")]
    assert returns[0] != returns[1]
    assert run.json("run.json")["seeds"] == [0, 1]
    assert len(pd.read_parquet(run.folder / "top.parquet")) == 2 * EPISODES


@pytest.fixture(scope="module")
def interrupted() -> tuple[command.Run, float]:
    """A search after Ctrl-C, which a terminal sends to every process of the foreground group, and how long it took."""
    running = Command("--layers", "squeezenet", "--episodes", "100000", "--search-images", "32")
    try:
        running.wait_for_rows()
        os.killpg(running.process.pid, signal.SIGINT)
        sent = time.monotonic()
        running.process.wait(60)
        seconds = time.monotonic() - sent
    finally:
        running.process.kill()  # if it has not ended
        run = running.finish()
    return run, seconds


def test_ctrl_c_ends_within_10_seconds_and_says_so(interrupted):
    run, seconds = interrupted
    assert run.status == 130
    assert seconds < 10
    assert "interrupted" in run.errors
    assert "Traceback" not in run.output + run.errors


def test_ctrl_c_keeps_every_finished_row_and_says_how_many(interrupted):
    run, _ = interrupted
    told = re.search(r"(\d+) configurations scored", run.output)
    assert int(told[1]) == len(run.rows) > 0
    assert run.rows["episode_id"].is_unique
    assert len(pd.read_parquet(run.folder / "top.parquet")) == min(30, len(run.rows))
    assert not (run.folder / "best.json").exists()


def test_ctrl_c_leaves_no_process_and_no_temporary_file(interrupted):
    run, _ = interrupted
    assert run.processes == () and run.temporary == ()
    assert list(run.folder.rglob("*.tmp")) == []
