"""A run in MLflow, read back by its client from a database of SQLite's."""

import sys

import mlflow
import pytest

from search.results import mlflow_runs, program, store
from tests.unit.test_curves import write_rungs
from tests.unit.test_results_program import write_run


@pytest.fixture
def run(tmp_path):
    return write_rungs(tmp_path / "r")


@pytest.fixture
def database(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def runs(database: str) -> dict:
    """MLflow's runs by name, without those that were deleted."""
    client = mlflow.MlflowClient(tracking_uri=database)
    experiment = client.get_experiment_by_name(mlflow_runs.EXPERIMENT).experiment_id
    return {found.info.run_name: found for found in client.search_runs([experiment])}


def test_mlflow_has_the_run_and_a_curve_of_each_search(run, database, capsys):
    assert program.main(["export-mlflow", str(run), "--tracking", database]) == 0
    assert capsys.readouterr().out == f"9 points in experiment tapsearch of {database}\n"
    found = runs(database)
    assert set(found) == {"r", "ppo-seed0", "ppo-seed1", "ppo-seed0@64"}
    assert found["r"].data.params["episodes"] == "4" and found["r"].data.metrics["scored"] == 9
    assert found["ppo-seed1"].data.tags["mlflow.parentRunId"] == found["r"].info.run_id
    assert {each.info.status for each in found.values()} == {"FINISHED"}
    client = mlflow.MlflowClient(tracking_uri=database)
    history = client.get_metric_history(found["ppo-seed0"].info.run_id, "best_return")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.2)]
    assert {point.timestamp for point in history} == {1_700_000_000_000}
    assert program.main(["export-mlflow", str(run), "--tracking", database]) == 2
    assert "has run r in experiment tapsearch" in capsys.readouterr().err and len(runs(database)) == 4


def test_what_fails_on_the_way_to_mlflow_is_deleted(run, database, monkeypatch):
    def full(*arguments):
        raise mlflow.exceptions.MlflowException("the disk is full")

    monkeypatch.setattr(mlflow_runs, "_log", full)
    assert program.main(["export-mlflow", str(run), "--tracking", database]) == 2
    assert runs(database) == {}


def test_a_run_without_rows_has_no_curves(tmp_path, database, capsys):
    assert program.main(["export-mlflow", str(write_run(tmp_path / "r", [])), "--tracking", database]) == 2
    assert "has no rows yet" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


@pytest.mark.parametrize("tracking", ["/tmp/none/mlruns", "nothing://", "sqlite:////dev/null/mlflow.db"])
def test_where_mlflow_cannot_write(run, tracking, capsys):
    assert program.main(["export-mlflow", str(run), "--tracking", tracking]) == 2
    assert f"error: --tracking {tracking}: MLflow cannot write there (" in capsys.readouterr().err


def test_without_mlflow_its_extra_is_named(run, database, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert program.main(["export-mlflow", str(run), "--tracking", database]) == 2
    assert "pip install -e '.[mlflow]'" in capsys.readouterr().err
    assert not (run.parent / "mlflow.db").exists() and (run / store.RUN).exists()
