"""A search on few images whose best are promoted to more, through the real command."""

import re

import numpy as np
import pandas as pd
import pytest

from approx_env import data
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from approx_env.teachers import store as teachers
from search.results import report, store
from tests.command import Command, Run, node

pytestmark = pytest.mark.slow
EPISODES, TOP = 6, 2  # of each seed
RUNGS = {16: 2 * EPISODES, 64: 3, 128: 2}  # ceil(12 * 16 / 64); ceil(3 * 64 / 128)
SCORES = ("return", "accuracy", "soft_accuracy", "drop_points", "kd", "at")


@pytest.fixture(scope="module")
def run() -> Run:
    arguments = f"--algorithm random --episodes {EPISODES} --seeds 0,1 --num-env-runners 1 --top {TOP}"
    finished = Command(*arguments.split(), "--rungs", ",".join(map(str, RUNGS))).finish()
    assert finished.status == 0, finished.errors
    return finished


@pytest.fixture(scope="module")
def top(run) -> pd.DataFrame:
    return pd.read_parquet(run.folder / store.TOP)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The problem on all search images, put together without the command."""
    digits, network = data.load("digits"), teachers.read(teachers.path_of("squeezenet", "digits")).network
    images, _ = digits.load("calibration", 512)
    return Problem(network, calibration.calibrate(network, np.split(images, 16)), *digits.load("search"), Reward())


def test_each_rung_has_the_rows_that_it_should(run):
    assert run.rows.groupby("search_images").size().to_dict() == RUNGS
    assert run.rows["episode_id"].is_unique


def test_the_best_of_each_rung_are_on_the_next_one_with_their_origin(run, problem):
    origin = ["trial", "algorithm", "seed", "episode"]
    codes = [f"{layer}_{field}" for layer in problem.network.layers for field in store.CODE_FIELDS]
    for images, more in ((16, 64), (64, 128)):
        below, above = (run.rows[run.rows["search_images"] == count] for count in (images, more))
        best = below.nlargest(RUNGS[more], "return")
        names = best["episode_id"].str.partition("@")[0] + f"@{more}"
        assert set(names) == set(above["episode_id"])
        promoted = above.set_index("episode_id").loc[names, origin + codes]
        assert (promoted.to_numpy() == best[origin + codes].to_numpy()).all()


def test_what_is_stored_of_a_rung_is_what_its_first_images_give(run, problem):
    layers = problem.network.layers
    for images in RUNGS:
        part = Problem(
            problem.network, problem.calibration, problem.images[:images], problem.labels[:images], problem.reward
        )
        evaluator = Evaluator(part)
        for row in run.rows[run.rows["search_images"] == images].head(3).to_dict("records"):
            score = evaluator.evaluate(store.codes_of(row, layers))
            assert [row[name] for name in SCORES] == [
                score.return_, score.accuracy, score.soft_accuracy, score.drop_points, score.kd, score.at
            ]  # fmt: skip


def test_the_top_are_of_the_largest_rung_alone(run, top):
    largest = run.rows[run.rows["search_images"] == 128]
    assert set(top["search_images"]) == {128}
    assert list(top["return"]) == sorted(largest["return"], reverse=True)
    chosen = run.json("best.json")["selection"]
    assert chosen["episode_id"] == top["episode_id"][chosen["rank_by_return"] - 1]
    assert chosen["search_return"] == top["return"][chosen["rank_by_return"] - 1]


def test_the_run_tells_its_rungs(run):
    assert "on 16, then 64, then 128 search images" in run.output
    told = re.findall(r"^(\d+) of (\d+) configurations promoted to (\d+) images, scored in [\d.]+ s$", run.output, re.M)
    assert told == [("3", "12", "64"), ("2", "3", "128")]
    assert f"{2 * EPISODES} configurations scored" in run.output
    arguments = run.json("run.json")["arguments"]
    assert (arguments["rungs"], arguments["search_images"]) == ([16, 64, 128], 16)


def test_the_report_compares_by_the_largest_rung(run, top):
    cells = report.row(run.folder)
    assert cells[3] == f"{EPISODES} x 2"
    best = run.rows[run.rows["search_images"] == 128].groupby("seed")["return"].max()
    assert cells[4] == f"{best.mean():.4f} ({best.min():.4f})"


def test_nothing_is_left_running_or_half_written(run):
    assert run.processes == () and run.temporary == ()
    assert list(run.folder.rglob("*.tmp")) == []


def test_a_search_of_one_configuration_promotes_it():
    run = Command(*f"--algorithm quintile --num-env-runners 0 --rungs 64,256 --address {node()}".split()).finish()
    assert run.status == 0, run.errors
    assert list(run.rows.sort_values("search_images")["episode_id"]) == ["quintile-seed0-0", "quintile-seed0-0@256"]
    assert "1 of 1 configurations promoted to 256 images" in run.output
