"""Any codes on any split: the evaluator's own numbers, by command and from Python, with what follows from the codes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from approx_env.adapt import student
from approx_env.engines import reference
from approx_env.int8 import cost
from approx_env.int8.nodes import Weighted
from approx_env.int8.sites import with_sites
from approx_env.scoring import calibration, distill
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from approx_env.teachers import store
from search import evaluate

ROOT = Path(__file__).parents[2]
MODEL, IMAGES = "squeezenet_compact", 16
FEW = {"model": MODEL, "images": IMAGES}
LIMITS = {"conv1": 60, "fire2": 70, "fire3": 80, "fire4": 90, "fire5": 100}


def layers_of(limits: dict[str, int]) -> dict[str, dict[str, int]]:
    """Fifths of each tmax, as best.json has them."""
    fifths = {name: tuple(tmax * k // 5 for k in (1, 2, 3, 4)) for name, tmax in limits.items()}
    return student.as_layers({name: (fifths[name], tmax) for name, tmax in limits.items()})


@pytest.fixture(scope="module")
def teacher() -> store.Teacher:
    return store.read(store.path_of(MODEL, "digits"))


@pytest.fixture
def edited(tmp_path) -> Path:
    """A file of codes that somebody wrote."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"layers": layers_of(LIMITS)}))
    return path


def refusal(capsys, *arguments: object) -> str:
    assert evaluate.main([str(each) for each in arguments]) == 2
    return capsys.readouterr().err


def test_it_is_the_evaluators_score(digits, teacher):
    images, labels = digits.load("test", IMAGES)
    problem = Problem(teacher.network, calibration.uncounted(LIMITS), images, labels, Reward())
    scorer = Evaluator(problem)
    codes = [tuple(four) for four, _ in student.codes_of(layers_of(LIMITS), scorer.layers).values()]
    score = scorer.evaluate(codes)
    found = evaluate.evaluate(layers_of(LIMITS), split="test", **FEW)
    for name in ("drop_points", "drop_error_points", "kd", "at", "zero_natural", "relative_energy"):
        assert found[name] == getattr(score, name), name
    assert (found["acc_teacher"], found["acc_student"]) == (scorer.teacher_accuracy, score.accuracy)
    half = 1.96 * score.drop_error_points
    assert found["drop_interval_points"] == [score.drop_points - half, score.drop_points + half]
    assert list(found["shares"].values()) == score.shares.tolist()
    assert list(found["all_shares"].values()) == cost.of_all(score.shares, score.covered).tolist()
    assert [list(each.values()) for each in found["layer_shares"].values()] == score.layer_shares.tolist()
    assert found["layers"] == layers_of(LIMITS) and found["notes"] == []


def test_kd_has_the_temperature_of_the_run_unless_another_is_asked_for(made, tmp_path):
    """The run's codes stand in for any: only its arguments are read here."""
    (tmp_path / "r").mkdir()
    about = json.loads((ROOT / "results" / "reference" / "squeezenet-quintile" / "run.json").read_text())
    about["arguments"] |= {"model": MODEL, "dataset": "digits", "data_dir": None, "teacher": None, "kd_temperature": 5.0}
    (tmp_path / "r" / "run.json").write_text(json.dumps(about))
    (tmp_path / "r" / "best.json").write_text(json.dumps({"layers": layers_of(LIMITS)}))
    run, layers = {"codes": str(tmp_path / "r")}, {"codes": layers_of(LIMITS)}
    kd = {}
    for name, given in {"run": run, "asked": run | {"kd_temperature": 2.0}, "plain": layers}.items():
        found = evaluate.evaluate(**given, **FEW)
        kd[name] = found["kd_temperature"], found["kd"]
    assert kd["run"][0] == 5 and kd["asked"] == kd["plain"] and kd["plain"][0] == 2
    assert kd["run"][1] == evaluate.evaluate(**layers, kd_temperature=5.0, **FEW)["kd"] != kd["plain"][1]


def test_each_class_by_hand(digits, teacher):
    images, labels = digits.load("validation", IMAGES)
    configuration = student.codes_of(layers_of(LIMITS), tuple(LIMITS))
    last = teacher.network.nodes[-1].name
    exact, changed = (reference.forward(teacher.network, images, each)[last].argmax(1) for each in ({}, configuration))
    rows = evaluate.evaluate(layers_of(LIMITS), **FEW)["classes"]
    assert [row["class"] for row in rows] == list(digits.classes)
    for label, row in enumerate(rows):
        of = labels == label
        assert row["images"] == of.sum()
        if of.any():
            before, after = ((guess[of] == label).mean() for guess in (exact, changed))
            assert (row["acc_teacher"], row["acc_student"]) == (before, after)
            assert row["change_points"] == pytest.approx(100 * (after - before))


def test_a_class_without_images_is_told_without_accuracy(digits):
    logits, labels = np.eye(3)[[0, 2, 1]], np.array([0, 2, 2])
    assert distill.class_accuracies(logits, labels, 3) == [1.0, None, 0.5]
    row = {"class": "x", "images": 0, "acc_teacher": None, "acc_student": None, "change_points": None}
    assert evaluate._class_row(row) == ("x", "0", "", "", "")


def test_the_command_and_python_say_the_same(edited, capsys):
    argv = ["--codes", str(edited), "--model", MODEL, "--split", "search", "--images", str(IMAGES)]
    found = evaluate.evaluate(str(edited), split="search", **FEW)
    assert evaluate.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert evaluate.main(argv) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{MODEL} on 16 search images of digits\nexact teacher ")
    low, high = found["drop_interval_points"]
    assert f"drop {found['drop_points']:.2f} points, 95 % interval {low:.2f} to {high:.2f}" in told
    shares = " | ".join(f"{share:.2%}" for share in found["all_shares"].values())
    assert f"| of all | {shares} |" in told and "| class | images | " in told


def test_quintile_is_of_the_calibration(teacher, digits):
    options = {"calib_batches": 1, "calib_batch_size": 32}
    found = evaluate.evaluate("quintile", sites="all", **options, **FEW)
    network = with_sites(teacher.network, "all")
    made = calibration.calibrate(network, [digits.load("calibration", 32)[0]])
    by_name = {layer.name: (layer.quintile, layer.tmax) for layer in made.layers}
    assert found["layers"] == student.as_layers({name: by_name[name] for name in network.layers})
    assert len(found["layers"]) == 9 and found["share_of_all_macs"] > 0.9


def test_the_layers_names_tell_which_sites_they_are(teacher):
    names = with_sites(teacher.network, "all").layers
    found = evaluate.evaluate(layers_of(dict.fromkeys(names, 60)), **FEW)
    assert tuple(found["layers"]) == names and found["share_of_all_macs"] > 0.9


@pytest.fixture
def made(teacher, tmp_path) -> Path:
    """A student with weights of its own, for all sites."""
    network = with_sites(teacher.network, "all")
    nodes = tuple(
        replace(node, bias=node.bias + np.int32(7)) if isinstance(node, Weighted) else node for node in network.nodes
    )
    codes = student.codes_of(layers_of(dict.fromkeys(network.layers, 60)), network.layers)
    student.write(tmp_path / "student.int8.json", replace(network, nodes=nodes), codes, teacher.about, {})
    return tmp_path / "student.int8.json"


def test_a_student_has_its_own_weights_and_codes(made, digits):
    found = evaluate.evaluate(student=str(made), images=IMAGES)
    network, configuration = (read := student.read(made)).network, read.configuration
    images, labels = digits.load("validation", IMAGES)
    logits = reference.forward(network, images, configuration)[network.nodes[-1].name]
    assert found["model"] == MODEL and found["notes"] == []
    assert found["acc_student"] == distill.hard_accuracy(logits, labels)
    assert found["layers"] == student.as_layers(configuration)
    assert found["student"]["sha256"] == read.about["sha256"] != found["teacher"]["sha256"]


def test_a_student_under_other_codes_is_noted(made, teacher):
    names = with_sites(teacher.network, "all").layers
    found = evaluate.evaluate(layers_of(dict.fromkeys(names, 90)), student=str(made), images=IMAGES)
    assert found["notes"] == ["the student was made for other codes"]
    assert found["layers"]["fire2"]["tmax_code"] == 90


def test_bad_input(edited, made, tmp_path, capsys):
    assert refusal(capsys, "--split", "test").startswith("error: --codes must name a run, a file of codes or quintile")
    few = ("--images", IMAGES)
    assert "--codes: /nowhere holds no codes for this network" in refusal(capsys, "--codes", "/nowhere", *few)
    assert "holds no run" in refusal(capsys, "--codes", tmp_path)
    assert "there must be codes for the layers conv1, fire2" in refusal(capsys, "--codes", edited, *few)  # squeezenet
    assert "there must be codes for the layers conv1, fire2_squ" in refusal(
        capsys, "--codes", edited, "--student", made, *few
    )
    assert "name the --teacher that it was made from" in refusal(
        capsys, "--student", made, "--teacher", store.path_of("squeezenet", "digits"), *few
    )
    assert "--split must be train, calibration" in refusal(capsys, "--codes", edited, "--split", "tests")
    assert "a squeezenet is asked for" in refusal(
        capsys, "--codes", edited, "--model", "squeezenet", "--teacher", store.path_of(MODEL, "digits")
    )
    assert "--data-dir" in refusal(capsys, "--codes", edited, "--model", MODEL, "--data-dir", tmp_path)
    assert "has 192 images, and 1000000 were asked" in refusal(
        capsys, "--codes", edited, "--model", MODEL, "--images", 10**6
    )
    for text, reason in (("[]", "it is no mapping"), ("{}", "it lacks 'layers'"), ("{", "Expecting"),
                         (json.dumps({"layers": layers_of(LIMITS) | {"conv1": 5}}), "holds no codes")):  # fmt: skip
        edited.write_text(text)
        assert reason in refusal(capsys, "--codes", edited, "--model", MODEL, *few)
    layers = layers_of(LIMITS)
    layers["fire3"]["t1_code"] = 200
    edited.write_text(json.dumps({"layers": layers}))
    assert "codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = 80" in refusal(
        capsys, "--codes", edited, "--model", MODEL, *few
    )


@pytest.mark.parametrize("name, value", [("dataset", 5), ("data_dir", []), ("teacher", {}), ("sites", "some"),
                                         ("kd_temperature", "hot")])  # fmt: skip
def test_a_run_json_that_no_search_wrote(name, value, tmp_path, capsys):
    shutil.copytree(ROOT / "results" / "reference" / "squeezenet-quintile", tmp_path / "r")
    about = json.loads((tmp_path / "r" / "run.json").read_text())
    about["arguments"][name] = value
    (tmp_path / "r" / "run.json").write_text(json.dumps(about))
    told = refusal(capsys, "--codes", tmp_path / "r")
    assert f"holds no run (run.json: arguments.{name} is none that a search has)" in told


def test_python_takes_no_unknown_option():
    with pytest.raises(TypeError, match="no option colour"):
        evaluate.evaluate("quintile", colour="blue")


def test_it_needs_no_ray():
    program = "import sys, search.evaluate; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
