"""The command as a person uses it: the other network, several seeds."""

import pandas as pd

from tests import command
from tests.command import EPISODES, PPO_ALEXNET

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
