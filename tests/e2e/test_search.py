"""What every search algorithm must leave behind, through the real command."""

import hashlib
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from approx_env import data, env, tap
from approx_env.scoring import baselines, calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from approx_env.teachers import store as teachers
from search import algorithms
from search.results import store
from search.results.folder import Folder
from tests import command
from tests.command import EPISODES, PPO_ALEXNET, ROOT, SEARCH_IMAGES, Command, Run
from tests.e2e import broken

ITERATION = 4  # episodes that PPO learns from at a time
SQUEEZENET = "--layers squeezenet --algorithm "
RUNNERS = {"ppo": 1, "random": 1, "hill": 0, "quintile": 0, "coordinate": 0}
ARGUMENTS = {
    "ppo": SQUEEZENET + f"ppo --num-env-runners 1 --episodes {EPISODES} --iteration-episodes {ITERATION}",
    "random": SQUEEZENET + f"random --num-env-runners 1 --episodes {EPISODES}",
    "hill": SQUEEZENET + f"hill --num-env-runners 0 --episodes {EPISODES}",
    "quintile": SQUEEZENET + "quintile --num-env-runners 0",
    "coordinate": SQUEEZENET + f"coordinate --num-env-runners 0 --episodes {EPISODES}",
}
POLICY = "f372f06001fcd732368aea53c9ef4042669b7f8171d6a70ada415e7460e994ae"  # SHA-256 of PPO's state
LAYERS = ("conv1", "fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9")


@pytest.fixture(scope="module", params=ARGUMENTS)
def algorithm(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(algorithm) -> Run:
    finished = command.run(ARGUMENTS[algorithm], alone=algorithm == "ppo")
    assert finished.status == 0, finished.errors
    return finished


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The problem that the runs searched, put together without the command."""
    digits, network = data.load("digits"), teachers.read(teachers.path_of("squeezenet", "digits")).network
    images, _ = digits.load("calibration", 512)
    calibrated = calibration.calibrate(network, np.split(images, 16))
    return Problem(network, calibrated, *digits.load("search", SEARCH_IMAGES), Reward())


def test_one_row_for_every_episode(run, algorithm):
    episodes = 1 if algorithm == "quintile" else EPISODES
    assert list(run.rows["episode"]) == list(range(episodes))
    assert run.rows["episode_id"].is_unique
    assert set(run.rows["algorithm"]) == {algorithm}
    assert set(run.rows["run"]) == {"r"}
    assert set(run.rows.columns) == set(store.schema(LAYERS).names)
    forwards = int(run.rows["layer_forwards"].sum())
    assert f"{episodes} configurations scored ({forwards} layer-forwards), all kept" in run.output
    assert forwards == episodes * len(LAYERS) or algorithm in ("hill", "coordinate")


def test_rows_have_the_bits_that_every_machine_must_give(run, algorithm):
    """Stored on a CPU with AVX-512 VNNI; PPO's with two updates of its policy."""
    if algorithm == "coordinate":
        return  # it is younger than the file
    stored = pd.read_parquet(ROOT / "tests" / "golden" / "rows.parquet").query("algorithm == @algorithm")
    pd.testing.assert_frame_equal(run.rows[stored.columns], stored.reset_index(drop=True), check_exact=True)


def test_a_policy_has_the_bits_that_every_machine_must_give(run, algorithm):
    """Weights and Adam's moments after the last update: rows are blind to a last bit until it turns a code."""
    if algorithm == "ppo":
        state = (run.folder / f"ppo-seed0{store.STATE_SUFFIX}").read_bytes()
        assert hashlib.sha256(state).hexdigest() == POLICY


def test_every_configuration_is_valid_under_the_calibrated_tmax(run, problem):
    for row in run.rows.to_dict("records"):
        assert tuple(row[f"{layer}_tmax"] for layer in LAYERS) == problem.calibration.tmax
        for codes, tmax in zip(store.codes_of(row, LAYERS), problem.calibration.tmax, strict=True):
            assert tap.problems(codes, tmax) == []


def test_rescoring_a_stored_configuration_gives_exactly_what_is_stored(run, problem):
    evaluator = Evaluator(problem)
    for row in run.rows.tail(3).to_dict("records"):
        score = evaluator.evaluate(store.codes_of(row, LAYERS))
        stored = [row[name] for name in ("return", "accuracy", "soft_accuracy", "drop_points", "kd", "at")]
        assert stored == [
            score.return_, score.accuracy, score.soft_accuracy, score.drop_points, score.kd, score.at
        ]  # fmt: skip
        assert [row[f"mac_{kind}"] for kind in ("zero", "v1", "v2", "exact")] == score.shares.tolist()
        natural = score.zero_natural, score.zero_natural * score.covered
        assert [row[name] for name in store.COSTS] == [*natural, score.relative_energy_sites, score.relative_energy]


def test_baselines_stand_beside_the_chosen_configuration(run, problem):
    rows = pq.read_table(run.folder / "baselines.parquet").to_pylist()
    best, evaluator = run.json("best.json"), Evaluator(replace_images(problem, "test"))
    assert [row["baseline"] for row in rows] == [
        "chosen", "natural zeros", "threshold at t1", "threshold at equal exact",
        "uniform 4-bit", "uniform 3-bit", "uniform 2-bit",
    ]  # fmt: skip
    chosen, natural, threshold, equal, *uniform = rows
    metrics = best["metrics"]
    assert chosen["test_accuracy"] == metrics["acc_student"]
    assert chosen["relative_energy"] == metrics["cost"]["relative_energy"] < natural["relative_energy"] < 1
    assert natural["test_accuracy"] == metrics["acc_teacher"]
    assert [natural[f"{layer}_limit"] for layer in LAYERS] == [0] * 9
    assert [threshold[f"{layer}_limit"] for layer in LAYERS] == [best["layers"][layer]["t1_code"] for layer in LAYERS]
    assert threshold["mac_exact"] > equal["mac_exact"] and all(row["mac_exact"] == 0 for row in uniform)
    for row in (threshold, equal):
        score = evaluator.evaluate([baselines.threshold(row[f"{layer}_limit"]) for layer in LAYERS])
        assert (row["test_accuracy"], row["mac_zero"], row["test_drop_error_points"]) == (
            score.accuracy, score.shares[0], score.drop_error_points
        )  # fmt: skip
    for row, told in zip(rows[1:], metrics["baselines"], strict=True):
        assert row["energy_table"] == metrics["cost"]["table"] == "Horowitz 45 nm"
        assert told.items() <= row.items()
        assert all(row[f"mac_{kind}{end}"] >= 0 for kind in ("zero", "shared", "exact") for end in ("", "_all"))
        assert row["mac_zero_all"] + row["mac_shared_all"] + row["mac_exact_all"] == pytest.approx(1)
    assert metrics["cost"]["scope"] == "arithmetic only: no memory, no control"


def test_clips_and_thresholds_were_fixed_without_test_images(run, problem):
    """On the calibration's histograms, and on validation where a share was to be met."""
    rows = {row["baseline"]: row for row in pq.read_table(run.folder / "baselines.parquet").to_pylist()}
    validation = Evaluator(replace_images(problem, "validation"))
    best = run.json("best.json")
    codes = [[layer[f"{name}_code"] for name in ("t1", "v1", "t2", "v2")] for layer in best["layers"].values()]

    def exact(baseline) -> float:
        return validation.evaluate(baseline.tables).shares[3]

    expected = [
        baselines.threshold_at_share(problem.calibration, validation.evaluate(codes).shares[3], exact),
        *baselines.fixed(problem.calibration, [four[0] for four in codes]),
    ]
    for baseline in expected:
        assert tuple(rows[baseline.name][f"{layer}_limit"] for layer in LAYERS) == baseline.limits


def replace_images(problem: Problem, split: str) -> Problem:
    images, labels = data.load("digits").load(split)
    return replace(problem, images=images, labels=labels)


def test_the_top_are_the_best_distinct_rows_with_validation(run):
    table = pq.read_table(run.folder / "top.parquet")
    top = table.to_pylist()
    codes = [store.codes_of(row, LAYERS) for row in top]
    distinct = {store.codes_of(row, LAYERS): row["return"] for row in run.rows.to_dict("records")}
    assert table.schema.equals(store.validated_schema(LAYERS))
    assert len(codes) == len(set(codes)) == min(30, len(distinct))
    assert [row["return"] for row in top] == sorted(distinct.values(), reverse=True)[:30]
    assert all(0 <= row["validation_accuracy"] <= 1 for row in top)
    drops = {round(100 * row["validation_accuracy"] + row["validation_drop_points"], 6) for row in top}
    assert len(drops) == 1  # accuracy and drop add up to one teacher


def test_best_json_is_the_most_accurate_of_the_top(run):
    best, top = run.json("best.json"), pq.read_table(run.folder / "top.parquet").to_pylist()
    assert tuple(best["layers"]) == LAYERS
    fields = {"t1_code", "v1_code", "t2_code", "v2_code", "tmax_code"}
    assert all(set(layer) == fields for layer in best["layers"].values())
    assert best["model"] == "squeezenet"
    metrics = best["metrics"]
    assert 0 <= metrics["acc_student"] <= 1 and 0.9 < metrics["acc_teacher"] <= 1
    assert metrics["acc_drop"] == pytest.approx(100 * (metrics["acc_teacher"] - metrics["acc_student"]))
    chosen = top[best["selection"]["rank_by_return"] - 1]
    flat = [code for layer in best["layers"].values() for code in layer.values()]
    assert flat == [chosen[f"{layer}_{name}"] for layer in LAYERS for name in ("t1", "v1", "t2", "v2", "tmax")]
    assert chosen["validation_accuracy"] == max(row["validation_accuracy"] for row in top)
    assert best["selection"]["within_max_acc_drop"] == (chosen["validation_drop_points"] <= 2)


def test_test_is_read_for_the_chosen_one_alone_and_told_as_it_is(run, problem):
    best, digits = run.json("best.json"), data.load("digits")
    codes = [[layer[f"{name}_code"] for name in ("t1", "v1", "t2", "v2")] for layer in best["layers"].values()]
    evaluator = Evaluator(Problem(problem.network, problem.calibration, *digits.load("test"), problem.reward))
    assert best["metrics"]["acc_student"] == evaluator.evaluate(codes).accuracy
    assert best["metrics"]["acc_teacher"] == evaluator.teacher_accuracy


def test_run_json_says_how_to_repeat_the_run(run, algorithm):
    told = run.json("run.json")
    arguments = told["arguments"]
    assert (arguments["algorithm"], arguments["search_images"]) == (algorithm, 32)
    assert arguments["num_env_runners"] == RUNNERS[algorithm]
    assert arguments["episodes"] == len(run.rows)
    assert told["seeds"] == [0]
    assert told["splits"] == {"train": 581, "calibration": 512, "search": 256, "validation": 192, "test": 256}
    assert {"torch", "ray", "numpy", "gymnasium"} <= set(told["versions"])
    assert told["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", told["commit"])
    assert told["teacher"]["dataset"] == "digits"


def test_the_terminal_shows_calibration_and_result(run):
    assert "squeezenet: 9 layers" in run.output
    assert "fire4, fire6, fire8" in run.output
    for layer in LAYERS:
        assert re.search(rf"^{layer}: +t1=\d+ v1=\d+ t2=\d+ v2=\d+ tmax=\d+ \(p90\+10\)", run.output, re.MULTILINE)
    closing = ("float teacher", "INT8 teacher", "chosen configuration", "drop, points", "validation", "test", "zero")
    assert all(words in run.output for words in closing)
    compared = ("natural zeros", "threshold at t1", "threshold at equal exact", "uniform 2-bit", "zero in the exact")
    assert all(words in run.output for words in compared)
    assert "by Horowitz 45 nm (arithmetic only: no memory, no control)" in run.output
    chosen = next(line for line in run.output.splitlines() if "chosen configuration" in line)
    best = run.json("best.json")
    assert f"{100 * best['metrics']['acc_student']:.2f}" in chosen
    assert "Traceback" not in run.output + run.errors
    rows = store.read(Folder(run.folder))
    searched = rows.set_index("episode_id").loc[best["selection"]["episode_id"], "drop_points"]
    gap = next(line for line in run.output.splitlines() if "gap" in line)
    assert gap.split()[-2:] == [f"{searched - best['metrics'][split]['drop_points']:.2f}" for split in store.SPLITS]


def test_nothing_is_left_half_written(run):
    assert run.temporary == ()
    assert list(run.folder.rglob("*.tmp")) == []


def test_a_local_search_leaves_no_process_and_says_nothing_of_ray():
    """As a baseline's does in test_rungs."""
    run = command.run(ARGUMENTS["ppo"], alone=True)
    assert run.processes == ()
    assert "raylet" not in run.output + run.errors


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rows_whatever_runs_beside_it():
    same_rows(command.run(ARGUMENTS["random"]), command.run(ARGUMENTS["random"] + " --seeds 0,1"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rows_however_many_env_runners_share_the_work():
    same_rows(*(command.run(PPO_ALEXNET + str(runners)) for runners in (2, 1, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(set(algorithms.NAMES).difference(ARGUMENTS)))
def test_the_other_algorithms_run_by_the_same_command(algorithm):
    episodes = 1 if algorithms.is_fixed(algorithm) else EPISODES
    finished = command.run(SQUEEZENET + f"{algorithm} --episodes {episodes}")
    assert finished.status == 0, finished.errors
    assert list(finished.rows["episode"]) == list(range(episodes))
    assert finished.json("best.json")["selection"]["trial"] == f"{algorithm}-seed0"


@pytest.mark.slow
def test_ppo_draws_with_what_it_has_learnt():
    learnt, not_learnt = (
        run.rows.filter(regex="_(t1|v1|t2|v2)$")
        for run in (command.run(ARGUMENTS["ppo"], alone=True), command.run(ARGUMENTS["ppo"] + " --lr 1e-9"))
    )
    assert learnt[:ITERATION].equals(not_learnt[:ITERATION])
    assert not learnt[ITERATION:].equals(not_learnt[ITERATION:])


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("random", marks=pytest.mark.slow)])
def test_an_exception_in_scoring_is_said_and_ray_s_logs_are_kept(algorithm):
    """It is said once, with its text; nobody tries again."""
    arguments = f"{ARGUMENTS[algorithm]} --search-images {SEARCH_IMAGES}".split()
    ended = Command(*arguments, environment=broken.ENVIRONMENT).finish()
    assert ended.status == 1
    assert "ZeroDivisionError: a bug in the evaluator" in ended.errors and "broken.py" in ended.errors
    assert "lost" not in ended.errors and "died" not in ended.output
    assert ended.errors.count("Ray's logs are kept in ") == 1
    assert ended.processes == () and ended.temporary == ()


@pytest.mark.slow
def test_env_runners_that_die_while_they_start_are_given_up():
    """As when memory is too small: Ray alone would start them a thousand times."""
    arguments = f"{PPO_ALEXNET}1 --search-images {SEARCH_IMAGES}".split()
    ended = Command(*arguments, environment=broken.ENVIRONMENT | {"TAPSEARCH_TEST_BUG": "die"}).finish()
    assert ended.status == 1
    assert "scoring processes were lost 6 times in a row" in ended.errors and "memory" in ended.errors
    assert "Traceback" not in ended.errors and ended.errors.count("Ray's logs are kept in ") == 1
    assert ended.processes == () and ended.temporary == ()


def test_a_search_that_learns_goes_on_from_its_rows(tmp_path):
    whole = command.run(ARGUMENTS["hill"])
    shutil.copytree(whole.folder, tmp_path / "r")
    (tmp_path / "r/best.json").unlink()
    folder = Folder(tmp_path / "r")
    rows = [row for row in store.read_rows(folder) if row["episode"] != 2 and row["episode"] < 9]
    for name in (folder / store.EPISODES).names():
        (folder / store.EPISODES).remove(name)
    (folder / store.EPISODES).write("part-1.parquet", store.parquet(rows, store.schema(LAYERS)))
    place = ["--address", command.node(), "--num-env-runners", "0"]
    resumed = Command("--resume", "r", *place, results=tmp_path).finish()
    assert resumed.status == 0, resumed.errors
    same_rows(whole, resumed)


def same_rows(*runs: Run) -> None:
    first, *others = (run.rows.query("seed == 0").drop(columns="time") for run in runs)
    assert len(first) == EPISODES
    assert all(other.equals(first) for other in others)


@pytest.mark.slow
def test_portable_engine_in_lockstep():
    """Three configurations at a time, on the other engine; five are no multiple of three."""
    finished = command.run(
        "--layers squeezenet_compact --algorithm ppo --engine portable --envs-per-runner 3 --num-env-runners 1 --episodes 5 --top 2"
    )
    assert finished.status == 0, finished.errors
    assert list(finished.rows["episode"]) == list(range(5))
    problem = env.shipped_problem("squeezenet_compact")
    few = replace(problem, images=problem.images[:SEARCH_IMAGES], labels=problem.labels[:SEARCH_IMAGES])
    evaluator = Evaluator(replace(few, engine="portable"))
    for row in finished.rows.to_dict("records"):
        score = evaluator.evaluate(store.codes_of(row, evaluator.layers))
        assert [row[name] for name in ("return", "accuracy", "kd", "at")] == [
            score.return_, score.accuracy, score.kd, score.at
        ]  # fmt: skip
