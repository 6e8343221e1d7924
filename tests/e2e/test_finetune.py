"""The fine-tuning command as a person uses it, on a finished run of the bundled digits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from approx_env.adapt import student
from approx_env.engines import reference
from approx_env.scoring import distill
from search import config, finetune, run
from search.job import prepare
from search.results import store
from tests import command
from tests.command import PPO_ALEXNET
from tests.twins import ENGINES, check_every_node


@pytest.fixture(scope="module")
def finished() -> Path:
    """The folder of a finished search; copy it before anything is written."""
    made = command.run(f"{PPO_ALEXNET}2")
    assert made.status == 0, made.errors
    return made.folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "r"))


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--run", "r", "--results", str(folder.parent), *more]


def refusal(capsys, folder: Path, *more: str) -> str:
    assert finetune.main(arguments(folder, *more)) == 2
    return capsys.readouterr().err


def test_a_student_is_made_scored_and_read_again(folder, capsys):
    assert finetune.main(arguments(folder, "--epochs", "1", "--batch-size", "32", "--rate", "0.2")) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].startswith("codes alone: drop on validation ")
    assert "step 18/18: loss " in told and f"student in {folder}" in told
    summary = json.loads((folder / "finetune.json").read_text())
    assert [point["step"] for point in summary["curve"]][-1] == 18
    validation = summary["validation"]
    assert list(validation) == ["codes alone", "corrected", "trained"]
    assert summary["chosen"] in ("corrected", "trained")  # eighteen steps may not be enough
    found = student.read(folder / store.STUDENT)
    assert found.about["student"]["recipe"] == summary["recipe"]
    assert summary["recipe"] == {"epochs": 1, "batch_size": 32, "rate": 0.2, "temperature": 2.0, "labels": False,
                                 "learn_codes": False, "hold_exact": False, "cutmix": 0.0, "seed": 0}  # fmt: skip
    best = json.loads((folder / store.BEST).read_text())
    assert found.about["student"]["layers"] == best["layers"]
    assert found.about["student"]["teacher_sha256"] == json.loads((folder / store.RUN).read_text())["teacher"]["sha256"]
    # The exact reference finds the drop that was told.
    images, labels = prepare(config.Settings(resume="r", results=str(folder.parent))).dataset.load("test")
    logits = reference.forward(found.network, images, found.configuration)[found.network.nodes[-1].name]
    assert summary["test"]["accuracy"] == distill.hard_accuracy(logits, labels)
    check_every_node(found.network, images[:8], found.configuration, ENGINES["portable"])
    assert not list(folder.glob("*.tmp")) and not (folder / "student.checkpoint").exists()
    # The run is whole, and its student is not overwritten.
    assert "holds a student (student.int8.json): move it" in refusal(capsys, folder)


def test_no_epochs_is_correction_alone(folder, tmp_path, capsys):
    argv = arguments(folder, "--epochs", "0", "--codes", "quintile", "--output", str(tmp_path / "other" / "s"))
    assert finetune.main(argv) == 0
    summary = json.loads((tmp_path / "other" / "s" / "finetune.json").read_text())
    assert (summary["chosen"], summary["curve"], list(summary["validation"])) == (
        "corrected", [], ["codes alone", "corrected"]
    )  # fmt: skip
    assert not (folder / store.STUDENT).exists()


def test_learnt_codes_without_a_tail(folder, capsys):
    """The student's file has the codes that it was scored with, and no multiplication is exact."""
    assert finetune.main(arguments(folder, "--no-tail", "--learn-codes", "--epochs", "1", "--rate", "1")) == 0
    summary = json.loads((folder / "finetune.json").read_text())
    assert summary["test"]["mac_exact"] == 0
    assert summary["test"]["mac_exact_all"] == pytest.approx(1 - summary["share_of_all_macs"])
    found = student.read(folder / store.STUDENT)
    assert all(tmax == 255 for _, tmax in found.configuration.values())
    images, labels = prepare(config.Settings(resume="r", results=str(folder.parent))).dataset.load("test")
    logits = reference.forward(found.network, images, found.configuration)[found.network.nodes[-1].name]
    assert summary["test"]["accuracy"] == distill.hard_accuracy(logits, labels)
    assert refusal(capsys, folder, "--no-tail", "--codes", "quintile") == (
        "error: --no-tail finds codes of its own: leave --codes out\n"
    )
    assert "add --learn-codes" in refusal(capsys, folder, "--hold-exact")


@pytest.mark.slow
def test_a_run_makes_a_student_in_the_end(capsys):
    """And when it goes on: nothing is searched again for it."""
    made = command.run("--layers alexnet --algorithm quintile --search-images 32 --finetune-epochs 0.2")
    assert made.status == 0, made.errors
    assert made.output.splitlines()[-2:] == [f"student in {made.folder}", f"report in {made.folder}/report.html"]
    found = student.read(made.folder / store.STUDENT)
    assert found.about["student"]["recipe"]["epochs"] == 0.2
    assert found.about["student"]["layers"] == made.json(store.BEST)["layers"]
    arrays = (made.folder / store.STUDENT_ARRAYS).read_bytes()
    for name in (store.STUDENT, store.STUDENT_ARRAYS, "finetune.json"):
        (made.folder / name).unlink()
    assert run.main(["--resume", "r", "--results", str(made.folder.parent)]) == 0
    assert (made.folder / store.STUDENT_ARRAYS).read_bytes() == arrays
    capsys.readouterr()
    assert run.main(["--resume", "r", "--results", str(made.folder.parent)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{made.folder} is finished: its results are in best.json", f"report in {made.folder}/report.html",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_like_an_undisturbed_one(folder, tmp_path):
    more = ["--epochs", "2", "--batch-size", "8"]
    running = subprocess.Popen(
        [sys.executable, "-m", "search.finetune", *arguments(folder, *more)], cwd=command.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (folder / "student.checkpoint").exists() and running.poll() is None:
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not (folder / store.STUDENT).exists()
    assert finetune.main(arguments(folder, *more)) == 0
    assert finetune.main(arguments(folder, *more, "--output", str(tmp_path / "whole"))) == 0
    one, other = (load_file(place / store.STUDENT_ARRAYS) for place in (folder, tmp_path / "whole"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    curves = [json.loads((place / "finetune.json").read_text())["curve"] for place in (folder, tmp_path / "whole")]
    assert len(curves[0]) == 10
    timeless = [[point | {"step_seconds": None} for point in curve] for curve in curves]
    assert timeless[0] == timeless[1]


def test_bad_input_is_told_at_once(folder, tmp_path, capsys):
    before = {path.name for path in folder.iterdir()}
    assert finetune.main([]) == 2
    assert capsys.readouterr().err == (
        "error: --run must name a run of --results: without it there is no teacher and no configuration\n"
    )
    assert "holds no run to go on with" in refusal(capsys, folder.parent / "x" / "r")
    assert "--codes: /nowhere holds no codes for this network" in refusal(capsys, folder, "--codes", "/nowhere")
    best = json.loads((folder / store.BEST).read_text())
    best["layers"]["conv1"]["t1_code"] = 200
    (tmp_path / "mine.json").write_text(json.dumps(best))
    assert "codes must satisfy 1 <= t1 < v1" in refusal(capsys, folder, "--codes", str(tmp_path / "mine.json"))
    del best["layers"]["conv1"]
    (tmp_path / "mine.json").write_text(json.dumps(best))
    assert "there must be codes for the layers conv1, conv2" in refusal(
        capsys, folder, "--codes", str(tmp_path / "mine.json")
    )
    assert "--epochs must be at least 0" in refusal(capsys, folder, "--epochs", "-1")
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, folder, "--output", str(tmp_path / "file"))
    assert {path.name for path in folder.iterdir()} - {"lease.json"} == before


def test_the_codes_own_tmax_is_used(folder, tmp_path):
    """As a search over tmax would leave it."""
    best = json.loads((folder / store.BEST).read_text())
    best["layers"]["conv1"] = {"t1_code": 1, "v1_code": 2, "t2_code": 3, "v2_code": 4, "tmax_code": 4}
    (tmp_path / "mine.json").write_text(json.dumps(best))
    job = prepare(config.Settings(resume="r", results=str(folder.parent)))
    settings = replace(finetune.Settings(), codes=str(tmp_path / "mine.json"))
    assert finetune.read_codes(settings, job)["conv1"] == ((1, 2, 3, 4), 4)
