"""Searches for tmax, under a budget of exact multiplications, and for a front of both, as a person runs them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from approx_env import tap
from approx_env.scoring.evaluator import Evaluator
from search.config import parse
from search.job import Job, prepare
from search.results import report, store
from search.results.folder import Folder
from tests import command
from tests.command import EPISODES, SEARCH_IMAGES, Command, Run

pytestmark = pytest.mark.slow
COMMON = "--layers squeezenet_compact --sites all --num-env-runners 1 --search-tmax "
FRONT = COMMON + "--algorithm hill --episodes 24 --objective pareto --budget-exact 0.12 --max-acc-drop 20 --top 5"
PPO = COMMON + f"--algorithm ppo --episodes {EPISODES} --iteration-episodes 4 --budget-exact 0.125 --top 3"
NONE = "--layers squeezenet_compact --sites all --num-env-runners 1 --algorithm random --episodes 3 "


def problem(run: Run) -> Job:
    """What the run worked on."""
    return prepare(parse(f"{COMMON} --search-images {SEARCH_IMAGES}".split()))


def check(run: Run, budget: float, moved: str = "all") -> None:
    """What every run that searches tmax leaves, and that its choice keeps the budget on search images.

    Args:
        moved: whether tmax of 'all' layers or of 'any' takes several values.
    """
    assert run.status == 0, run.errors
    job = problem(run)
    layers, scorer = job.problem.network.layers, Evaluator(job.problem)
    for row in run.rows.to_dict("records"):
        codes = store.codes_of(row, layers)
        assert not any(tap.problems(five, 4) for five in codes)
        score = scorer.evaluate(codes)
        assert (row["return"], row["mac_exact_all"]) == (score.return_, score.mac_exact_all)
    values = run.rows[[f"{layer}_tmax" for layer in layers]].nunique()
    assert (values > 2).all() if moved == "all" else (values > 1).any()
    assert (run.rows["mac_exact_all"] > budget).any()
    top = pd.read_parquet(run.folder / store.TOP)
    assert (top["mac_exact_all"] <= budget).all()
    chosen = top[top["episode_id"] == run.json("best.json")["selection"]["episode_id"]].iloc[0]
    assert chosen["validation_mac_exact_all"] <= budget
    for layer, codes in run.json("best.json")["layers"].items():
        assert codes == {f"{name}_code": chosen[f"{layer}_{name}"] for name in store.CODE_FIELDS}


def cut_off(run: Run, kept: int, folder: Path) -> None:
    """Copies a run that was cut off after so many rows."""
    shutil.copytree(run.folder, folder / "r")
    (folder / "r/best.json").unlink(missing_ok=True)
    parts = Folder(folder / "r") / store.EPISODES
    rows = [row for row in store.read_rows(Folder(folder / "r")) if row["episode"] < kept]
    for name in parts.names():
        parts.remove(name)
    parts.write("part-1.parquet", store.parquet(rows, store.schema(list(run.json("run.json")["layers"]))))


def resume(folder: Path) -> Run:
    arguments = ("--resume", "r", "--num-env-runners", "1", "--address", command.node())
    return Command(*arguments, results=folder).finish()


def test_a_front(capsys):
    run = command.run(FRONT)
    check(run, 0.12)
    points, top = (pd.read_parquet(run.folder / name) for name in (store.PARETO, store.TOP))
    assert list(points.columns) == store.pareto_schema(problem(run).problem.network.layers).names
    assert set(points["episode_id"]) <= set(top["episode_id"]) and 1 < len(points) <= 5
    assert (points["validation_mac_exact_all"].diff().dropna() < 0).all()
    assert (points["validation_drop_points"].diff().dropna() > 0).all()
    tested = Evaluator(problem(run).held_out["test"])
    for row in points.to_dict("records"):
        score = tested.evaluate(store.codes_of(row, tested.layers))
        assert (row["test_drop_points"], row["mac_exact_all"]) == (score.drop_points, score.mac_exact_all)
    chosen = points[points["chosen"]]
    assert list(chosen["episode_id"]) == [run.json("best.json")["selection"]["episode_id"]]
    assert (
        "exact of all, validation / test, %" in run.output and f"{chosen['episode_id'].iloc[0]} (chosen)" in run.output
    )
    assert report.main([str(run.folder)]) == 0
    assert "(Horowitz 45 nm) |" in capsys.readouterr().out


def test_a_front_goes_on_where_it_was_cut_off(tmp_path):
    run = command.run(FRONT)
    cut_off(run, 11, tmp_path)
    again = resume(tmp_path)
    assert again.status == 0, again.errors
    assert again.rows.drop(columns="time").equals(run.rows.drop(columns="time"))
    assert again.json("best.json") == run.json("best.json")
    first, second = (pd.read_parquet(one.folder / store.PARETO) for one in (run, again))
    assert first.equals(second)


def test_another_objective_is_not_taken_by_a_run_that_goes_on(tmp_path):
    cut_off(command.run(FRONT), 11, tmp_path)
    again = Command("--resume", "r", "--objective", "return", results=tmp_path).finish()
    assert again.status == 2 and again.errors.startswith("error: --objective is what run r was started with")


def test_ppo_draws_tmax_and_keeps_the_budget(tmp_path):
    run = command.run(PPO)
    check(run, 0.125, moved="any")
    cut_off(run, EPISODES - 2, tmp_path)
    again = resume(tmp_path)
    assert again.status == 0, again.errors
    assert again.rows.drop(columns="time").equals(run.rows.drop(columns="time"))


@pytest.mark.parametrize("more", ["--budget-exact 0.095", "--budget-exact 0.095 --rungs 16,32"])
def test_a_run_in_which_none_keeps_the_budget_says_so_and_keeps_its_rows(more, tmp_path):
    size = "" if "rungs" in more else f"--search-images {SEARCH_IMAGES}"
    run = Command(*f"{NONE} {more} {size} --address {command.node()}".split()).finish()
    assert run.status == 2 and "Traceback" not in run.errors
    assert run.errors.startswith(
        "error: no configuration keeps --budget-exact 0.095 on the search images, so that none"
    )
    assert len(run.rows) == 3 and (run.rows["mac_exact_all"] > 0.095).all()
    assert sorted(path.name for path in run.folder.iterdir() if path.suffix != ".parquet") == ["episodes", "run.json"]
    shutil.copytree(run.folder, tmp_path / "r")
    again = resume(tmp_path)
    assert (again.status, again.errors, len(again.rows)) == (2, run.errors, 3)
