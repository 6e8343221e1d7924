"""`search.evaluate` on finished runs: what it says of the chosen codes is what best.json says."""

import shutil

import pytest

from approx_env.adapt import student
from approx_env.teachers import store as teachers
from search import evaluate
from search.results import store
from tests import command
from tests.command import PPO_ALEXNET

FEW = "--layers squeezenet_compact --sites all --algorithm random --episodes 2 --num-env-runners 1 --top 2"


@pytest.mark.parametrize("arguments", [f"{PPO_ALEXNET}2", pytest.param(FEW, marks=pytest.mark.slow)])
def test_a_runs_own_numbers(arguments):
    run = command.run(arguments)
    assert run.status == 0, run.errors
    best = run.json(store.BEST)
    for split in ("validation", "test"):
        found = evaluate.evaluate(str(run.folder), split=split)
        told = best["metrics"][split]
        assert (found["acc_teacher"], found["acc_student"]) == (told["teacher"], told["student"])
        assert [found[name] for name in ("drop_points", "drop_error_points")] == [
            told[name] for name in ("drop_points", "drop_error_points")
        ]
    cost = best["metrics"]["cost"]
    assert found["shares"]["exact"] == cost["mac_exact"] and found["all_shares"]["exact"] == cost["mac_exact_all"]
    assert (found["relative_energy"], found["model"]) == (cost["relative_energy"], best["model"])
    assert found["layers"] == best["layers"] and found["notes"] == []


def test_a_student_that_comes_with_a_run_keeps_its_own_codes(tmp_path):
    """It may have learnt them."""
    run = command.run(f"{PPO_ALEXNET}2")
    teacher = teachers.read(teachers.path_of("alexnet", "digits"))
    own = dict.fromkeys(teacher.network.layers, ((1, 2, 3, 4), 255))
    student.write(tmp_path / "s.int8.json", teacher.network, own, teacher.about, {})
    found = evaluate.evaluate(str(run.folder), student=str(tmp_path / "s.int8.json"), images=8)
    assert found["layers"] == student.as_layers(own) != run.json(store.BEST)["layers"]
    assert found["notes"] == []


def test_best_json_alone_names_network_and_dataset(tmp_path):
    run = command.run(f"{PPO_ALEXNET}2")
    shutil.copy(run.folder / store.BEST, tmp_path / "copy.json")
    found = evaluate.evaluate(str(tmp_path / "copy.json"), images=8)
    assert (found["model"], found["dataset"], found["layers"]) == ("alexnet", "digits", run.json(store.BEST)["layers"])
