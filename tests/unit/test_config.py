"""The options of `python -m search.run`."""

import json
import math
import os
from dataclasses import asdict

import pytest

from approx_env.errors import InputError
from search import algorithms, config
from search.config import Settings
from search.workers.processes import Needs

# Every flag of the command, and the words in its help that name its unit (none: it has no unit).
UNITS = {
    "--engine": "vector",
    "--device": "device",
    "--cost": "energy",
    "--threads-per-runner": "threads",
    "--envs-per-runner": "configurations",
    "--gpus-per-runner": "GPUs",
    "--model": "",
    "--weights": "",
    "--dataset": "",
    "--data-dir": "",
    "--teacher": "",
    "--sites": "",
    "--algorithm": "",
    "--episodes": "configurations",
    "--seeds": "",
    "--search-images": "images",
    "--rungs": "images",
    "--calib-batches": "batches",
    "--calib-batch-size": "images",
    "--init-from": "quintile",
    "--lr": "",
    "--iteration-episodes": "episodes",
    "--objective": "",
    "--budget-exact": "share of all multiplications",
    "--search-tmax": "percentile",
    "--accuracy": "",
    "--kd-temperature": "logits",
    "--kd-weight": "",
    "--at-weight": "",
    "--tmax-percentile": "%",
    "--tmax-offset": "codes",
    "--max-acc-drop": "points",
    "--top": "configurations",
    "--sensitivity": "",
    "--finetune-epochs": "passes",
    "--num-env-runners": "processes",
    "--address": "",
    "--results": "",
    "--run-name": "",
    "--resume": "",
    "--quiet": "",
    "--json": "",
}

BAD = {
    "--model": ["resnet", "", "net.py", "net.py:", "net.py:a-b", "net.py:Net.Inner", "net:Net", ":Net", "net.pth"],
    "--dataset": ["mnist", "DIGITS"],
    "--algorithm": ["sac"],
    "--accuracy": ["top5"],
    "--objective": ["front", ""],
    "--budget-exact": ["2", "-0.1", "nan", "inf", "half", ""],
    "--search-tmax": ["maybe", ""],
    "--quiet": ["very", ""],
    "--json": ["lines", ""],
    "--episodes": ["0", "-3", "ten", "1.5", ""],
    "--seeds": ["1,1", "one", "1,,2", "", "99999999999999999999"],
    "--search-images": ["0", "-1", "many"],
    "--rungs": ["256", "64,64", "256,64", "0,64", "64,many", "64,,256", "64,256,", ""],
    "--calib-batches": ["0", "-16", "x"],
    "--calib-batch-size": ["0", "-32", "x"],
    "--iteration-episodes": ["0", "-1", "x"],
    "--lr": ["0", "-0.1", "nan", "inf", "2", "fast"],
    "--kd-temperature": ["0", "-2", "nan", "inf", "hot"],
    "--kd-weight": ["-1", "nan", "inf", "x"],
    "--at-weight": ["-1", "nan", "inf", "x"],
    "--tmax-percentile": ["0", "-90", "100.5", "nan", "x"],
    "--tmax-offset": ["-256", "256", "1.5", "x"],
    "--max-acc-drop": ["-1", "101", "nan", "x"],
    "--top": ["0", "-30", "x"],
    "--num-env-runners": ["-1", "x", "1.5"],
    "--run-name": ["", "a/b", "..", ".hidden", "x" * 101],
    "--resume": ["", "a/b", "..", ".hidden", "x" * 101],
}


def problems(*argv: str) -> list[str]:
    with pytest.raises(InputError) as error:
        config.parse(list(argv))
    return error.value.problems


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in BAD.items() for value in values])
def test_a_bad_value_is_one_problem_that_names_flag_and_value(flag, value):
    (problem,) = problems(flag, value)
    assert problem.startswith(f"{flag} must be ")
    assert value in problem


def test_all_bad_values_are_reported_at_once():
    argv = [part for flag, values in BAD.items() for part in (flag, values[0])]
    assert sorted(problem.split()[0] for problem in problems(*argv)) == sorted(BAD)


def test_bad_values_and_contradictions_are_reported_at_once():
    found = problems("--episodes", "ten", "--max-acc-drop", "-1", "--dataset", "imagefolder")
    assert [problem.split(" must ")[0] for problem in found[:2]] == ["--episodes", "--max-acc-drop"]
    assert "--data-dir" in found[2] and len(found) == 3


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        ("--finetune-epochs 1 --results s3://b", ["--finetune-epochs", "--results"]),
        ("--data-dir here", ["--data-dir", "digits"]),
        ("--dataset digits --data-dir here", ["--data-dir", "digits"]),
        ("--dataset imagefolder", ["--dataset imagefolder", "--data-dir"]),
        ("--algorithm random --lr 0.1", ["--lr", "--algorithm random"]),
        ("--algorithm quintile --episodes 2", ["--algorithm quintile", "--episodes"]),
        ("--device cuda", ["--engine vector", "--device cuda", "--engine portable"]),
        ("--algorithm random --iteration-episodes 8", ["--iteration-episodes", "--algorithm random"]),
        ("--algorithm random --envs-per-runner 2", ["--envs-per-runner", "--algorithm random"]),
        ("--algorithm reconstruction --seeds 0,1", ["--algorithm reconstruction", "--seeds"]),
        ("--algorithm quintile --seeds 0,1", ["--algorithm quintile", "--seeds"]),
        ("--rungs 64,256 --search-images 64", ["--rungs", "--search-images"]),
        ("--objective pareto --algorithm ppo", ["--objective pareto", "random", "hill", "got ppo"]),
        ("--objective pareto --algorithm quintile", ["--objective pareto", "got quintile"]),
        ("--objective kd --at-weight 0.5", ["--objective kd", "--at-weight"]),
        ("--objective kd+at --accuracy soft", ["--objective kd+at", "--accuracy"]),
        ("--resume r --objective return", ["--objective", "run r"]),
        ("--resume r --budget-exact 0.5", ["--budget-exact", "run r"]),
        ("--resume r --search-tmax", ["--search-tmax", "run r"]),
        ("--resume r --quiet --json", ["--quiet", "--json"]),
        ("--resume r --episodes 3", ["--episodes", "run r"]),
        ("--resume r --num-env-runners 4096", ["--num-env-runners 4096", f"has {os.cpu_count()}"]),
        ("--num-env-runners 4096", ["--num-env-runners 4096", f"has {os.cpu_count()}"]),
    ],
)
def test_a_contradiction_names_the_options_that_contradict(argv, flags):
    (problem,) = problems(*argv.split())
    assert all(flag in problem for flag in flags)


def test_all_contradictions_are_reported_at_once():
    found = problems(*"--data-dir here --algorithm quintile --lr 0.1 --episodes 5".split())
    assert len(found) == 3


@pytest.mark.parametrize(
    "argv, name",
    [
        ("", "cma"),
        ("--episodes 4096", "cma"),
        ("--episodes 4096 --search-tmax", "hill"),
        ("--objective pareto", "hill"),
        ("--objective kd", "cma"),
        ("--algorithm random", "random"),
    ],
)
def test_what_searches_follows_from_what_is_asked(argv, name):
    assert config.parse(argv.split()).works == name


def test_defaults():
    settings = config.parse([])
    assert settings == Settings()
    assert (settings.model, settings.dataset, settings.algorithm) == (None, "digits", "auto")
    assert (settings.calib_batches, settings.calib_batch_size, settings.top) == (16, 32, 30)
    assert (settings.accuracy, settings.kd_temperature, settings.max_acc_drop) == ("hard", 2.0, 2.0)
    assert (settings.tmax_percentile, settings.tmax_offset) == (90.0, 10)
    assert (settings.address, settings.results, settings.seeds) == ("local", "results", (0,))
    assert 1 <= settings.runners <= (os.cpu_count() or 1)
    assert settings.budget > 1
    assert settings.needs == Needs(1, 0)
    assert Settings(engine="portable", device="cuda").needs == Needs(1, 1)
    assert Settings(engine="portable", device="cuda", gpus_per_runner=0.25).needs == Needs(1, 0.25)


def test_threads_are_for_the_cpu(monkeypatch):
    monkeypatch.setattr(config.os, "cpu_count", lambda: 8)
    with pytest.raises(InputError, match="--threads-per-runner is for the cpu, and --device cuda came: leave one out"):
        config.parse("--engine portable --device cuda --threads-per-runner 2".split())


def test_runners_of_several_threads_are_fewer(monkeypatch):
    monkeypatch.setattr(config.os, "cpu_count", lambda: 7)
    assert [Settings(threads_per_runner=threads).runners for threads in (1, 2, 3, 7)] == [7, 3, 2, 1]
    for argv in (["--threads-per-runner", "8"], ["--threads-per-runner=4", "--num-env-runners=2"],
                 ["--threads-per-runner", "8", "--num-env-runners", "0"]):  # fmt: skip
        with pytest.raises(InputError, match="needs 8 cores, and this machine has 7: ask for fewer"):
            config.parse(argv)


def test_a_resumed_search_has_its_own_options_but_for_where_things_are():
    own = asdict(Settings(algorithm="random", rungs=(64, 256), num_env_runners=7, teacher="t", data_dir="d",
                          gpus_per_runner=0.5, threads_per_runner=8))  # fmt: skip
    own = json.loads(json.dumps(own))
    given = config.parse("--resume r --results s3://b/x --teacher moved --json".split())
    assert config.resumed(given, own) == Settings(
        algorithm="random", rungs=(64, 256), teacher="moved", data_dir="d", resume="r", results="s3://b/x",
        gpus_per_runner=0.5, threads_per_runner=8, json=True,
    )  # fmt: skip


@pytest.mark.parametrize("argv", [["--layers", "alexnet"], ["--layers=alexnet"], ["--model", "alexnet"]])
def test_the_model_is_also_called_layers(argv, monkeypatch):
    assert config.parse(argv).model == "alexnet"
    monkeypatch.setattr("sys.argv", ["search.run", *argv])
    assert config.parse(None).model == "alexnet"


@pytest.mark.parametrize(
    "place", ["runs", "/runs", "s3://b", "s3://b/x?scheme=http", "file:///tmp/x", "a:b", "with space"]
)
def test_places_for_results(place):
    assert config.parse(["--results", place]).results == place


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "xpu:0"])
def test_devices(device):
    assert config.parse(["--engine", "portable", "--device", device]).device == device


@pytest.mark.parametrize("algorithm", filter(algorithms.is_fixed, algorithms.NAMES))
def test_one_configuration_is_one_episode_unless_told(algorithm):
    assert config.parse(["--algorithm", algorithm]).budget == 1
    assert config.parse(["--algorithm", "random", "--episodes", "7"]).budget == 7


def test_quintile_may_climb_rungs():
    assert config.parse("--algorithm quintile --rungs 64,256".split()).rungs == (64, 256)


def test_what_the_search_is_after():
    settings = config.parse("--algorithm hill --objective pareto --budget-exact 0.25 --search-tmax".split())
    assert (settings.objective, settings.budget_exact, settings.search_tmax) == ("pareto", 0.25, True)
    settings = config.parse([])
    assert (settings.objective, settings.budget_exact, settings.search_tmax) == ("return", None, False)
    assert [config.parse(["--budget-exact", text]).budget_exact for text in ("0", "1")] == [0, 1]


def test_values_are_converted():
    settings = config.parse("--algorithm ppo --seeds 2,0,11 --lr 1e-4 --tmax-offset -5 --num-env-runners 0 --run-name a.b".split())
    assert settings.seeds == (2, 0, 11)
    assert settings.rungs is None and config.parse(["--rungs", "64,128,256"]).rungs == (64, 128, 256)
    assert math.isclose(settings.lr, 1e-4)
    assert (settings.tmax_offset, settings.runners, settings.run_name) == (-5, 0, "a.b")


@pytest.mark.parametrize("argv", [["--epochs", "3"], ["--episode", "3"], ["--lr"], ["alexnet"]])
def test_an_unknown_or_incomplete_option_is_named(argv):
    (problem,) = problems(*argv)
    assert argv[0] in problem and "--help" in problem


def test_help_explains_every_flag_with_its_unit(capsys):
    with pytest.raises(SystemExit) as exit_:
        config.parse(["--help"])
    assert exit_.value.code == 0
    options = capsys.readouterr().out.split("options:")[1].split("\n  --")
    texts = {"--" + text.split()[0]: " ".join(text.split()[2:]) for text in options[1:]}
    assert set(texts) == set(UNITS)
    for flag, unit in UNITS.items():
        assert texts[flag] and unit in texts[flag], flag
