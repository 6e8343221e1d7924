"""A run as a study of Optuna's: read back as Optuna reads it."""

import datetime
import time

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search.results import program, store, study
from tests.unit.test_inspection import ABOUT, LAYERS, ROWS
from tests.unit.test_results_program import REFERENCE, write_run


def exported(folder, path, name: str = "r") -> optuna.Study:
    assert program.main(["export-optuna", str(folder), "--output", str(path)]) == 0
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))


def test_a_row_is_a_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Etc/GMT-3")
    time.tzset()
    try:
        made = exported(write_run(tmp_path / "r"), tmp_path / "r.log")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert made.direction.name == "MAXIMIZE" and made.metric_names == ["return"]
    assert made.user_attrs["arguments"] == ABOUT["arguments"]
    assert [trial.user_attrs["episode_id"] for trial in made.trials] == [row["episode_id"] for row in ROWS]
    trial, row = made.trials[3], ROWS[3]
    assert (trial.value, trial.state, trial.intermediate_values) == (0.3, TrialState.COMPLETE, {32: 0.3})
    codes = {f"{layer}_{name}": row[f"{layer}_{name}"] for layer in LAYERS for name in store.CODE_FIELDS[:-1]}
    assert trial.params == codes == {f"{layer}_{name}": code for layer in LAYERS
                                     for name, code in zip(("t1", "v1", "t2", "v2"), (1, 2, 3, 7), strict=True)}  # fmt: skip
    assert trial.distributions["conv1_t1"] == IntDistribution(1, 32)  # 1 <= t1 < v1 < t2 < v2 <= 35
    assert trial.distributions["fire2_v2"] == IntDistribution(4, 255)
    assert {name: trial.user_attrs[name] for name in ("accuracy", "drop_points", "kd", "at", "mac_zero")} == {
        "accuracy": 0.25, "drop_points": 0.25, "kd": 0.25, "at": 0.25, "mac_zero": 0.25,
    }  # fmt: skip
    assert trial.datetime_complete == trial.datetime_start == datetime.datetime(2023, 11, 15, 1, 13, 20)
    assert made.best_trial.value == 0.3


def test_lower_rungs_are_pruned(tmp_path):
    made = exported(REFERENCE / "squeezenet-hill", tmp_path / "r.log", "squeezenet-hill")
    states = [(trial.user_attrs["search_images"], trial.state) for trial in made.trials]
    assert set(states) == {(1024, TrialState.PRUNED), (4096, TrialState.COMPLETE)} and len(states) == 1597
    assert made.best_trial.user_attrs["episode_id"] == "hill-seed3-221@4096"
    assert made.trials[0].value is None and list(made.trials[0].intermediate_values) == [1024]


def test_a_budget_is_a_constraint(tmp_path):
    rows = [row | {"mac_exact_all": 0.5 + row["episode"] / 8} for row in ROWS]
    arguments = ABOUT["arguments"] | {"budget_exact": 0.625}
    made = exported(write_run(tmp_path / "r", rows, arguments=arguments), tmp_path / "r.log")
    assert [trial.constraints["budget"] for trial in made.trials[:4]] == [0.0, 0.0, 0.125, 0.25]
    assert made.best_trial.value == 0.1


def test_a_front_has_two_objectives_and_a_searched_tmax_is_a_parameter(tmp_path):
    rows = [row | {"mac_exact_all": row["return"]} for row in ROWS]
    arguments = ABOUT["arguments"] | {"objective": "pareto", "search_tmax": True}
    made = exported(write_run(tmp_path / "r", rows, arguments=arguments), tmp_path / "r.log")
    assert [direction.name for direction in made.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert made.trials[2].values == [0.2, 0.2] and len(made.best_trials) == len(ROWS)
    assert made.trials[0].params["conv1_tmax"] == 35
    assert made.trials[0].distributions["conv1_tmax"] == IntDistribution(4, 255)


def test_what_is_there_is_kept_unless_forced(tmp_path, capsys):
    run, path = write_run(tmp_path / "r"), tmp_path / "r.log"
    path.write_text("mine")
    assert program.main(["export-optuna", str(run), "--output", str(path)]) == 2
    assert "replace it by --force" in capsys.readouterr().err and path.read_text() == "mine"
    assert program.main(["export-optuna", str(run), "--output", str(path), "--force"]) == 0
    assert path.read_text() != "mine"


@pytest.mark.parametrize(
    ("rows", "output", "said"),
    [(ROWS, "none/r.log", "cannot be written"), (ROWS, "r", "is there"), ([], "r.log", "has no rows yet")],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path, capsys, rows, output, said):
    run = write_run(tmp_path / "r", rows)
    before = sorted(tmp_path.rglob("*"))
    assert program.main(["export-optuna", str(run), "--output", str(tmp_path / output)]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    run, path = write_run(tmp_path / "r"), tmp_path / "r.log"
    path.write_text("mine")
    monkeypatch.setattr(study.Folder, "write", lambda folder, name, data: (_ for _ in ()).throw(OSError("full")))
    assert program.main(["export-optuna", str(run), "--output", str(path), "--force"]) == 2
    assert "cannot be written (full)" in capsys.readouterr().err and path.read_text() == "mine"


def test_the_output_must_be_named(tmp_path, capsys):
    assert program.main(["export-optuna", str(write_run(tmp_path / "r"))]) == 2
    assert "--output must say where to" in capsys.readouterr().err
