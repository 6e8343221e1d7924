"""The end of a run, with a sink, runners and an evaluator that are no actors and score what they are told to."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from approx_env.errors import InputError
from approx_env.int8 import energy
from approx_env.scoring import baselines
from approx_env.scoring.calibration import Calibration, Layer
from approx_env.scoring.evaluator import Score
from search.config import Settings
from search.results import inspection, store
from search.results.folder import Folder
from search.stages import validation
from search.workers.processes import Needs
from tests.unit.test_inspection import ABOUT, LAYERS, ROWS, TMAX

TOP = [ROWS[3], ROWS[2], ROWS[1]]
CALIBRATED = (Layer(*each, np.zeros(4)) for each in zip(LAYERS, [np.ones(256, int)] * 2, TMAX, strict=True))
CALIBRATION = Calibration(tuple(CALIBRATED), 90.0, 10)
SHARES = np.array([0.4, 0.3, 0.1, 0.2])
COSTS = {"drop_error_points": 0.5, "covered": 0.5, "relative_energy_sites": 0.25, "relative_energy": 0.625,
         "mac_exact_all": 0.6}  # fmt: skip
# Accuracy, drop, and share of exact multiplications, by v2 of the first layer.
SCORES = {4 + 3: (0.70, 20.0, 0.55), 4 + 2: (0.88, 2.0, 0.6), 4 + 1: (0.89, 1.0, 0.65)}


asked: list[tuple[str, int]] = []  # of runners: the split, and which configuration


class Runners:
    def __init__(self, problem, count: int, needs: Needs):
        assert (len(problem.labels), count) in ((5, 3), (7, 2), (7, 1)) and needs == Needs()
        self.closed, self.split = False, {5: "validation", 7: "test"}[len(problem.labels)]

    def evaluate(self, configurations):
        for codes in configurations:
            asked.append((self.split, codes[0][3]))
            accuracy, drop, exact = SCORES[codes[0][3]]
            drop += self.split == "test"
            yield {"accuracy": accuracy, "drop_points": drop, "shares": SHARES} | COSTS | {"mac_exact_all": exact}

    def score(self, tables):
        assert not self.closed
        for each in tables:
            exact = float(np.mean([(table.kinds[table.values] == 3).mean() for table in each]))
            shares = np.array([1 - exact, 0, 0, exact])
            yield {"accuracy": 0.85, "drop_points": 5.0, "shares": shares} | COSTS

    def teacher_accuracy(self) -> float:
        return 0.9

    def close(self) -> None:
        self.closed = True


class Evaluator:
    """On the test images; it may be asked but once for a configuration. It has the layers in another order."""

    asked: list = []
    layers = LAYERS[::-1]
    engine = None
    teacher_accuracy = 0.91
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    teacher_logits = np.eye(2)[[0, 0, 0, 1, 1, 1, 1]]

    def __init__(self, problem):
        assert len(problem.labels) == 7

    def taken(self, configuration):
        logits = np.eye(2)[[0, 0, 1, 1, 1, 1, 1]]
        return SimpleNamespace(scores=[self.evaluate(configuration)], logits=lambda: [logits])

    def evaluate(self, configuration) -> Score:
        Evaluator.asked.append(configuration)
        shares = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
        return Score(
            accuracy=0.87, soft_accuracy=0.8, drop_points=4.0, kd=0.1, at=0.1, return_=0.5, layer_shares=shares,
            shares=shares.mean(0), layer_zero_natural=np.array([0.05, 0.25]), zero_natural=0.15, **COSTS,
        )  # fmt: skip


@pytest.fixture
def finish(monkeypatch, tmp_path):
    """Ends a run with so high a drop allowed; gives best.json and the files that were written, in order."""
    Evaluator.asked = []
    asked.clear()
    monkeypatch.setattr(validation, "Runners", Runners)
    monkeypatch.setattr(validation, "Evaluator", Evaluator)
    monkeypatch.setattr(validation.changes, "parquet", lambda problem, codes: b"%d" % len(problem.labels))
    monkeypatch.setattr(validation.attention, "parquet", lambda engine, problem, codes: b"%d" % len(problem.labels))
    monkeypatch.setattr(validation, "patiently", lambda handle, answer: answer)

    def run(max_acc_drop: float, **settings):
        files = {}
        handle = SimpleNamespace(
            top=SimpleNamespace(remote=lambda: TOP), write=SimpleNamespace(remote=lambda given: files.update(given))
        )
        job = SimpleNamespace(
            settings=Settings(max_acc_drop=max_acc_drop, num_env_runners=4, **settings),
            name="r",
            problem=SimpleNamespace(
                network=SimpleNamespace(model="squeezenet", layers=LAYERS, classes=("no", "yes")),
                calibration=CALIBRATION,
                energy=energy.read("jouppi-7nm"),
            ),
            held_out={"validation": SimpleNamespace(labels=[0] * 5), "test": SimpleNamespace(labels=[0] * 7)},
            dataset=SimpleNamespace(name="digits"),
            teacher=SimpleNamespace(about={"float_accuracy": {"validation": 0.92, "test": 0.93}}),
            folder=Folder(tmp_path),
            share_of_all_macs=0.949,
        )
        validation.finish(job, handle)
        return json.loads(files[store.BEST]), files

    return run


def test_the_most_accurate_one_within_the_drop_is_chosen(finish):
    best, files = finish(2.0)
    kept = [store.CLASSES, store.CHANGED, store.ATTENTION]
    assert list(files) == [store.TOP, store.BASELINES, *kept, store.BEST]  # best.json last: with it the run is finished
    assert best["selection"] == {
        "rule": "highest validation accuracy within a drop of 2 points", "within_max_acc_drop": True,
        "rank_by_return": 3, "trial": "ppo-seed0", "episode_id": "ppo-seed0-1", "search_return": 0.1,
    }  # fmt: skip
    metrics = best["metrics"]
    error = {"drop_error_points": 0.5}
    assert metrics["validation"] == {"teacher": 0.9, "student": 0.89, "drop_points": 1.0} | error
    assert metrics["test"] == {"teacher": 0.91, "student": 0.87, "drop_points": 4.0} | error
    assert (metrics["acc_teacher"], metrics["acc_student"], metrics["acc_drop"]) == (0.91, 0.87, 4.0)
    assert metrics["share_of_all_macs"] == 0.949


def test_without_one_within_the_drop_the_most_accurate_of_all_is_chosen(finish):
    best, _ = finish(0.5)
    assert not best["selection"]["within_max_acc_drop"] and best["selection"]["episode_id"] == "ppo-seed0-1"
    assert best["selection"]["rule"] == "highest validation accuracy of all: none lost at most 0.5 points"


def test_test_images_are_read_for_the_chosen_one_alone(finish):
    finish(2.0)
    chosen, *others = Evaluator.asked
    assert chosen == store.codes_of(ROWS[1], LAYERS)
    assert len(others) == 6  # the baselines, each once
    assert len({tuple(table.values.tobytes() for table in tables) for tables in others}) == 6


def test_classes_are_those_of_test_and_changed_images_those_of_validation(finish):
    _, files = finish(2.0)
    assert pq.read_table(io.BytesIO(files[store.CLASSES])).to_pylist() == [
        {"class": "no", "images": 4, "acc_teacher": 0.75, "acc_student": 0.5, "change_points": -25.0},
        {"class": "yes", "images": 3, "acc_teacher": 1.0, "acc_student": 1.0, "change_points": 0.0},
    ]
    assert files[store.CHANGED] == files[store.ATTENTION] == b"5"


def test_of_a_front_each_point_is_read_once_on_test_and_the_cheapest_within_the_drop_is_chosen(finish, capsys):
    best, files = finish(2.0, objective="pareto")
    kept = [store.CLASSES, store.CHANGED, store.ATTENTION]
    assert list(files) == [store.TOP, store.BASELINES, *kept, store.PARETO, store.BEST]
    assert best["selection"]["episode_id"] == "ppo-seed0-2" and best["selection"]["within_max_acc_drop"]
    assert best["selection"]["rule"] == "fewest exact multiplications within a validation drop of 2 points"
    assert Evaluator.asked[0] == store.codes_of(ROWS[2], LAYERS)
    assert sorted(asked) == [("test", 5), ("test", 7), *(("validation", v2) for v2 in (5, 6, 7))]
    points = pq.read_table(io.BytesIO(files[store.PARETO])).to_pylist()
    names = ("episode_id", "chosen", "validation_drop_points", "test_drop_points", "validation_mac_exact_all")
    assert [tuple(point[name] for name in names) for point in points] == [
        ("ppo-seed0-1", False, 1.0, 2.0, 0.65), ("ppo-seed0-2", True, 2.0, 4.0, 0.6),
        ("ppo-seed0-3", False, 20.0, 21.0, 0.55),
    ]  # fmt: skip
    assert (points[0]["return"], points[0]["conv1_v2"], points[0]["fire2_tmax"]) == (0.1, 5, 255)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "scoring 3 configurations of the front on 7 test images" in said
    assert "ppo-seed0-2 (chosen) 60.00 / 62.50 2.00 ± 0.98 4.00 ± 0.98 0.625" in said


def test_what_is_beaten_on_validation_is_not_of_the_front(finish, monkeypatch):
    monkeypatch.setitem(SCORES, 4 + 3, (0.70, 20.0, 0.65))
    _, files = finish(2.0, objective="pareto")
    ids = [point["episode_id"] for point in pq.read_table(io.BytesIO(files[store.PARETO])).to_pylist()]
    assert ids == ["ppo-seed0-1", "ppo-seed0-2"]


def test_what_exceeds_the_budget_on_validation_is_not_chosen(finish):
    best, files = finish(2.0, budget_exact=0.6)
    assert best["selection"]["episode_id"] == "ppo-seed0-2"  # the most accurate one exceeds it
    assert best["selection"]["rule"].endswith("within a drop of 2 points, at most 0.6 of all multiplications exact")
    rows = pq.read_table(io.BytesIO(files[store.TOP])).to_pylist()
    assert [row["validation_mac_exact_all"] for row in rows] == [0.55, 0.6, 0.65]
    _, files = finish(2.0, budget_exact=0.6, objective="pareto")
    assert len(pq.read_table(io.BytesIO(files[store.PARETO]))) == 2


@pytest.mark.parametrize("split", ["validation", "search"])
def test_without_a_configuration_that_keeps_the_budget_nothing_is_chosen(finish, monkeypatch, split):
    if split == "search":
        monkeypatch.setattr("tests.unit.test_validation.TOP", [])
    with pytest.raises(InputError, match=rf"^no configuration keeps --budget-exact 0\.5 on the {split} images, so"):
        finish(2.0, budget_exact=0.5)
    assert Evaluator.asked == []


def test_codes_of_best_json_are_those_of_the_row_by_name(finish):
    best, _ = finish(2.0)
    assert best["layers"] == {
        "conv1": {"t1_code": 1, "v1_code": 2, "t2_code": 3, "v2_code": 5, "tmax_code": 35},
        "fire2": {"t1_code": 1, "v1_code": 2, "t2_code": 3, "v2_code": 5, "tmax_code": 255},
    }


def test_shares_are_shown_beside_the_layer_that_they_are_of(finish, capsys):
    finish(2.0)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "fire2 10.00% 20.00% 30.00% 40.00% 5.00%" in said and "conv1 40.00% 30.00% 20.00% 10.00% 25.00%" in said
    assert "all these layers 25.00% 25.00% 25.00% 25.00% 15.00%" in said
    assert "by Jouppi 7 nm (arithmetic only: no memory, no control)" in " ".join(said)
    row = "1.00 ± 0.98 4.00 ± 0.98 25.0 / 50.0 / 25.0 12.5 / 25.0 / 62.5 0.250 / 0.625"
    assert f"chosen {row}" in said and sum("-bit " in line for line in said) == 3
    assert said.index("scoring the best 3 on 5 validation images") == 0 and said[-1].startswith("results in ")


def test_the_top_has_what_validation_measured(finish):
    _, files = finish(2.0)
    rows = pq.read_table(io.BytesIO(files[store.TOP])).to_pylist()
    assert [(row["episode_id"], row["validation_accuracy"], row["validation_drop_points"]) for row in rows] == [
        ("ppo-seed0-3", 0.70, 20.0), ("ppo-seed0-2", 0.88, 2.0), ("ppo-seed0-1", 0.89, 1.0)
    ]  # fmt: skip


def test_what_is_written_passes_inspection(finish, tmp_path):
    _, files = finish(2.0)
    for name, data in files.items():
        Folder(tmp_path).write(name, data)
    inspection.check_top(Folder(tmp_path), ABOUT)
    inspection.check_baselines(Folder(tmp_path), ABOUT)
    assert inspection.best_json(Folder(tmp_path), ABOUT)["model"] == "squeezenet"


def test_the_baselines_are_those_of_the_chosen_one(finish):
    best, files = finish(2.0)
    rows = pq.read_table(io.BytesIO(files[store.BASELINES])).to_pylist()
    named = {row["baseline"]: (row["conv1_limit"], row["fire2_limit"]) for row in rows}
    clips = {f"uniform {bits}-bit": (baselines.best_clip(np.ones(256, int), bits),) * 2 for bits in (4, 3, 2)}
    # A fifth of all codes stays exact, as of the chosen one, where the threshold is 255 x 0.8.
    assert named.pop("threshold at equal exact") == pytest.approx((204, 204), abs=1)
    assert named == {"chosen": TMAX, "natural zeros": (0, 0), "threshold at t1": (1, 1)} | clips
    chosen, threshold = rows[0], rows[2]
    assert (chosen["validation_drop_points"], chosen["test_drop_points"], chosen["validation_accuracy"]) == (1, 4, 0.89)
    assert (threshold["validation_drop_points"], threshold["test_drop_points"]) == (5, 4)
    assert (chosen["mac_shared"], chosen["mac_exact_all"], chosen["energy_table"]) == (0.5, 0.625, "Jouppi 7 nm")
    assert best["metrics"]["cost"]["table"] == "Jouppi 7 nm" and best["metrics"]["cost"]["relative_energy"] == 0.625
    assert [told["baseline"] for told in best["metrics"]["baselines"]] == [row["baseline"] for row in rows[1:]]
