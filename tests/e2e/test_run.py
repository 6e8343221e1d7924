"""The command as a person uses it: the other network, several seeds, Ctrl-C."""

import os
import re
import signal

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
    run = command.run(f"--layers alexnet --num-env-runners 0 --algorithm random --episodes {EPISODES} --seeds 0,1")
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
def interrupted() -> command.Run:
    """A search after Ctrl-C, which a terminal sends to every process of the foreground group."""
    running = Command("--layers", "squeezenet", "--episodes", "100000", "--search-images", "32")
    running.wait_for_rows()
    os.killpg(running.process.pid, signal.SIGINT)
    return running.finish()


def test_ctrl_c_ends_a_search_that_has_hours_to_go_and_says_so(interrupted):
    """Within ten seconds, on a machine that has nothing else to do."""
    assert interrupted.status == 130
    assert "interrupted" in interrupted.errors
    assert "Traceback" not in interrupted.output + interrupted.errors


def test_ctrl_c_keeps_every_finished_row_and_says_how_many(interrupted):
    run = interrupted
    told = re.search(r"(\d+) configurations scored", run.output)
    assert 0 < int(told[1]) == len(run.rows) < 100_000
    assert run.rows["episode_id"].is_unique
    assert len(pd.read_parquet(run.folder / "top.parquet")) == min(30, len(run.rows))
    assert not (run.folder / "best.json").exists()


def test_ctrl_c_leaves_no_process_and_no_temporary_file(interrupted):
    assert interrupted.processes == () and interrupted.temporary == ()
    assert list(interrupted.folder.rglob("*.tmp")) == []
