"""Searches with every site, as a person runs them."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from approx_env import tap
from approx_env.scoring.evaluator import Evaluator
from search import sensitivity
from search.config import parse
from search.job import Job, prepare
from search.results import report, store
from search.results.folder import Folder
from tests import command
from tests.command import EPISODES, SEARCH_IMAGES, Command, Run

COMPACT = (
    "--layers squeezenet_compact --sites all --sensitivity --algorithm random --episodes 6 --top 2 --num-env-runners 1"
)
PPO = f"--layers squeezenet --sites all --algorithm ppo --episodes {EPISODES} --iteration-episodes 4 --top 3 --num-env-runners 1"


def problem(run: Run) -> Job:
    """What the run worked on."""
    arguments = run.json("run.json")["arguments"]
    return prepare(parse(f"--layers {arguments['model']} --sites all --search-images {SEARCH_IMAGES}".split()))


def check(run: Run, count: int, share: float) -> None:
    """What every run with `count` sites leaves."""
    assert run.status == 0, run.errors
    job = problem(run)
    layers, tmax = job.problem.network.layers, job.problem.calibration.tmax
    assert len(layers) == count and sum(layer.endswith("_squeeze") for layer in layers) == count // 2
    assert set(run.rows.columns) == set(store.schema(layers).names)
    assert run.rows["episode_id"].is_unique
    scorer = Evaluator(job.problem)
    for row in run.rows.to_dict("records"):
        codes = store.codes_of(row, layers)
        assert not any(map(tap.problems, codes, tmax))
        assert tuple(row[f"{layer}_tmax"] for layer in layers) == tmax
        assert row["return"] == scorer.evaluate(codes).return_
    best, about = run.json("best.json"), run.json("run.json")
    assert tuple(best["layers"]) == tuple(about["layers"]) == layers
    assert best["metrics"]["share_of_all_macs"] == about["share_of_all_macs"] == job.share_of_all_macs
    assert about["arguments"]["sites"] == "all"
    assert pq.read_schema(run.folder / "top.parquet").equals(store.validated_schema(layers))
    assert f"{count} layers, which feed {share}% of all multiplications" in run.output


def resumed(run: Run, kept: int, folder: Path) -> Run:
    """The same run, cut off after so many rows, goes on."""
    shutil.copytree(run.folder, folder / "r")
    (folder / "r/best.json").unlink()
    parts = Folder(folder / "r") / store.EPISODES
    rows = [row for row in store.read_rows(Folder(folder / "r")) if row["episode"] < kept]
    for name in parts.names():
        parts.remove(name)
    parts.write("part-1.parquet", store.parquet(rows, store.schema(list(run.json("best.json")["layers"]))))
    return Command("--resume", "r", "--num-env-runners", "1", "--address", command.node(), results=folder).finish()


@pytest.mark.slow
def test_a_random_search():
    run = command.run(COMPACT)
    check(run, 9, 90.8)
    measured = pd.read_parquet(run.folder / sensitivity.FILE)
    assert len(measured) == 2 * 10 and (measured["sites"] == "all").all()
    assert run.output.index("| all layers | 100.0% / ") < run.output.index("6 configurations scored")


@pytest.mark.slow
def test_it_goes_on_and_is_reported(tmp_path, capsys):
    run = command.run(COMPACT)
    again = resumed(run, 4, tmp_path)
    assert again.status == 0, again.errors
    assert again.rows.drop(columns="time").equals(run.rows.drop(columns="time"))
    assert "| all layers |" not in again.output  # that was measured before
    assert report.main([str(again.folder)]) == 0
    assert "| squeezenet_compact, all sites | " in capsys.readouterr().out


@pytest.mark.slow
def test_ppo(tmp_path):
    run = command.run(PPO)
    check(run, 17, 94.6)
    assert list(run.rows["episode"]) == list(range(EPISODES))
    again = resumed(run, EPISODES, tmp_path)
    assert again.status == 0, again.errors
    assert again.json("best.json") == run.json("best.json")
    assert report.main([str(again.folder)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["quintile", "hill --episodes 9 --rungs 16,32"])
def test_other_searches(algorithm):
    arguments = f"--layers squeezenet --sites all --num-env-runners 1 --top 2 --algorithm {algorithm}".split()
    size = [] if "--rungs" in arguments else ["--search-images", str(SEARCH_IMAGES)]
    run = Command(*arguments, *size, "--address", command.node()).finish()
    assert run.status == 0, run.errors
    assert len(run.json("best.json")["layers"]) == 17
