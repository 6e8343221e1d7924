"""`python -m search.results`: what it lists, shows, ranks and compares, and how it ends."""

import csv
import datetime
import io
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from search.results import lease, program, query, selection, store, summary
from search.results.folder import Folder, as_json
from tests.unit.test_inspection import ABOUT, BEST, LAYERS, OLDER, ROWS, write_part

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
HILL, PPO = str(REFERENCE / "squeezenet-hill"), str(OLDER)  # PPO of an older version
A_FEW_SECONDS = 30.0  # generous, for a machine that has much else to do


def write_run(folder: Path, rows: list[dict] = ROWS, **about) -> Path:
    """A run that was cut off."""
    (folder / store.EPISODES).mkdir(parents=True)
    if rows:
        write_part(folder, rows)
    (folder / store.RUN).write_bytes(as_json(ABOUT | about))
    return folder


def told(capsys, *arguments: str) -> str:
    assert program.main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def lines(capsys, *arguments: str) -> list[dict]:
    return [json.loads(line) for line in told(capsys, *arguments, "--json").splitlines()]


def test_a_run_is_a_line(tmp_path, capsys):
    finished = write_run(tmp_path / "a", started="2026-01-02T00:00:00+00:00")
    (finished / store.BEST).write_bytes(as_json(BEST))
    write_run(tmp_path / "b", [], started="2026-01-03T00:00:00+00:00")
    (tmp_path / "no run").mkdir()
    newest, oldest = lines(capsys, "list", "--results", tmp_path)
    assert oldest == {
        "run": "r", "folder": f"{tmp_path}/a", "model": "squeezenet", "dataset": "digits", "algorithm": "ppo",
        "objective": "return", "sites": "standard", "seeds": 2, "episodes": 4, "search_images": 32, "scored": 8,
        "best_return": 0.3, "best_drop_points": 0.25, "validation_drop_points": 10.0, "test_drop_points": 10.0,
        "relative_energy": 0.25, "started": "2026-01-02T00:00:00+00:00", "state": "finished",
    }  # fmt: skip
    assert (newest["folder"], newest["scored"], newest["best_return"], newest["state"]) == (
        f"{tmp_path}/b", 0, None, "cut off",
    )  # fmt: skip
    table = told(capsys, "list", "--results", tmp_path, "--sort", "best_return").splitlines()
    assert [line.split()[-1] for line in table[3:5]] == ["finished", "off"] and "0.3000" in table[3]
    assert len(lines(capsys, "list", "--results", tmp_path, "--limit", "1")) == 1
    assert lines(capsys, "list", "--results", tmp_path, "--algorithm", "hill") == []
    assert len(lines(capsys, "list", "--results", tmp_path, "--algorithm", "ppo", "--model", "squeezenet")) == 2


def test_a_run_is_at_work_while_somebody_holds_it(tmp_path):
    folder = Folder(write_run(tmp_path / "r"))
    assert summary.summary(folder)["state"] == "cut off"
    lease.beat(folder, lease.me())
    assert summary.summary(folder)["state"] == "at work"
    folder.write_json(lease.FILE, asdict(lease.me()) | {"time": time.time() - lease.EXPIRES_SECONDS})
    assert summary.summary(folder)["state"] == "cut off"


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path, capsys):
    write_run(tmp_path / "a")
    (write_run(tmp_path / "b") / store.EPISODES / "part-2.parquet").write_bytes(b"PAR1 and no more")
    (write_run(tmp_path / "c") / store.RUN).write_text("{")
    write_run(tmp_path / "d", run="another")
    found = {each["folder"][-1]: each["state"] for each in lines(capsys, "list", "--results", tmp_path)}
    assert found["a"] == "cut off"
    assert found["b"].startswith("damaged: rows of") and "part-2.parquet" in found["b"]
    assert found["c"].startswith("damaged: ") and "holds no run" in found["c"]
    assert found["d"].startswith("damaged: ") and "holds rows of run r, and run.json is of another" in found["d"]


def test_what_was_edited_is_named(tmp_path, capsys):
    write_run(tmp_path / "budget", arguments=ABOUT["arguments"] | {"budget_exact": "half"})
    write_run(tmp_path / "lease")
    (tmp_path / "lease" / lease.FILE).mkdir()
    for name, said in (
        ("budget", "arguments.budget_exact must be a number in 0..1"),
        ("lease", "lease.json cannot be"),
    ):
        assert program.main(["show", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    write_run(tmp_path / "odd", started=5, arguments=ABOUT["arguments"] | {"objective": ["x"], "sites": None})
    write_run(tmp_path / "older")
    assert len(lines(capsys, "list", "--results", tmp_path, "--sort", "objective")) == 4
    assert len(lines(capsys, "list", "--results", tmp_path)) == 4


@pytest.mark.parametrize("name", ["squeezenet-hill", "alexnet-random", PPO])
def test_top_is_what_the_run_itself_kept(capsys, name):
    """With rungs, and without."""
    kept = pd.read_parquet(REFERENCE / name / store.TOP)
    found = lines(capsys, "top", REFERENCE / name, "--limit", len(kept))
    assert [row["episode_id"] for row in found] == list(kept["episode_id"])
    assert [row["return"] for row in found] == list(kept["return"])


@pytest.mark.parametrize("sort", ["return", "drop_points"])
def test_the_best_come_first_once_each(tmp_path, capsys, sort):
    """Two searches proposed the same codes; the first one's row is told."""
    write_run(tmp_path / "r", [row | {"drop_points": -row["return"]} for row in ROWS])
    found = lines(capsys, "top", tmp_path / "r", "--sort", sort, "--limit", 3)
    assert [(row["trial"], row["episode"]) for row in found] == [("ppo-seed0", 3), ("ppo-seed0", 2), ("ppo-seed0", 1)]
    assert found[0] == ROWS[3] | {"drop_points": -0.3, "time": "2023-11-14T22:13:20+00:00"}


def test_top_keeps_the_budget_and_the_highest_rung(tmp_path, capsys):
    over = [row | {"mac_exact_all": 0.5 + row["episode"] / 10} for row in ROWS]
    promoted = [row | {"search_images": 64, "episode_id": f"{row['episode_id']}@64"} for row in over[:3]]
    arguments = ABOUT["arguments"] | {"budget_exact": 0.65, "rungs": [32, 64]}
    write_run(tmp_path / "r", over + promoted, arguments=arguments)
    (best,) = lines(capsys, "top", tmp_path / "r", "--limit", 1)
    assert (best["episode_id"], best["mac_exact_all"]) == ("ppo-seed0-1@64", 0.6)
    (shown,) = lines(capsys, "show", tmp_path / "r")
    assert (shown["scored"], shown["search_images"], shown["best_return"]) == (11, 64, 0.1)
    assert [each["best_return"] for each in shown["searches"]] == [0.1, None]


def test_a_folder_may_have_any_name(tmp_path, capsys):
    write_run(tmp_path / "r[1] *? '\"")
    assert len(lines(capsys, "top", tmp_path / "r[1] *? '\"")) == 4


def test_show_tells_searches_settings_and_codes(tmp_path, capsys):
    write_run(tmp_path / "r")
    (tmp_path / "r" / store.BEST).write_bytes(as_json(BEST))
    (shown,) = lines(capsys, "show", tmp_path / "r")
    scored = datetime.datetime.fromtimestamp(1_700_000_000, datetime.UTC).isoformat()
    assert shown["searches"] == [
        {"trial": f"ppo-seed{seed}", "seed": seed, "scored": 4, "best_return": 0.3, "best_drop_points": 0.25,
         "first_time": scored, "last_time": scored} for seed in (0, 1)
    ]  # fmt: skip
    assert shown["chosen"] == BEST["layers"] and shown["selection"] == BEST["selection"]
    assert shown["arguments"] == ABOUT["arguments"]
    text = told(capsys, "show", tmp_path / "r")
    assert "state: finished\n" in text and "chosen: ppo-seed0-3\n" in text
    assert [line.split() for line in text.splitlines() if line.strip().startswith(LAYERS)] == [
        [layer, *(str(BEST["layers"][layer][f"{name}_code"]) for name in store.CODE_FIELDS)] for layer in LAYERS
    ]
    rows = list(csv.DictReader(io.StringIO(told(capsys, "show", tmp_path / "r", "--csv"))))
    assert [row["trial"] for row in rows] == ["ppo-seed0", "ppo-seed1"] and rows[0]["best_return"] == "0.3"


def test_runs_side_by_side(capsys):
    first, second = lines(capsys, "compare", HILL, PPO)
    assert (first["run"], second["run"]) == ("squeezenet-hill", "squeezenet-ppo")
    assert first["arguments"]["objective"] == "kd" and second["arguments"]["objective"] is None
    assert "model" not in first["arguments"] and "results" not in first["arguments"]
    text = told(capsys, "compare", HILL, PPO).splitlines()
    assert text[1].split() == ["1:", "squeezenet-hill", "2:", "squeezenet-ppo"]
    assert ["--episodes", "256", "512"] in [line.split() for line in text]
    rows = list(csv.DictReader(io.StringIO(told(capsys, "compare", HILL, PPO, "--csv"))))
    assert [row["--algorithm"] for row in rows] == ["hill", "ppo"]


def test_csv_has_every_column_and_every_digit(capsys):
    (row,) = csv.DictReader(io.StringIO(told(capsys, "top", PPO, "--limit", 1, "--csv")))
    (same,) = lines(capsys, "top", PPO, "--limit", 1)
    assert list(row) == list(same) and {name: str(value) for name, value in same.items()} == row


def test_a_million_rows_take_a_few_seconds(tmp_path, capsys):
    """In the parts of 1,000 that a search writes."""
    layers, generator = [f"fire{k}" for k in range(2, 6)], np.random.default_rng(0)
    columns, part = store.schema(layers), store.ROWS_A_PART
    about = ABOUT | {"layers": {layer: {"tmax": 255} for layer in layers}}
    (tmp_path / store.EPISODES).mkdir()
    (tmp_path / store.RUN).write_bytes(as_json(about))
    kinds = {pa.string(): lambda: ["r"] * part, pa.float64(): lambda: generator.random(part)}
    # The codes and most scores of all parts are the same; returns, which make the order, are not.
    common = {field.name: pa.array(kinds.get(field.type, lambda: generator.integers(1, 255, part))(), field.type)
              if not pa.types.is_timestamp(field.type) else pa.array([0] * part, field.type)
              for field in columns} | {"search_images": pa.array([32] * part)}  # fmt: skip
    best = 0.0
    for number in range(1000):
        returns = generator.random(part)
        best = max(best, returns.max())
        own = {"return": pa.array(returns), "episode": pa.array(np.arange(part) + number * part),
               "episode_id": pa.array([f"ppo-seed0-{number * part + k}" for k in range(part)])}  # fmt: skip
        table = pa.table(common | own, schema=columns)
        (tmp_path / store.EPISODES / f"part-{number}.parquet").write_bytes(store.arrow_parquet(table))
    began = time.monotonic()
    assert [row["return"] for row in lines(capsys, "top", tmp_path, "--limit", 1)] == [best]
    assert summary.summary(str(tmp_path))["scored"] == 1_000_000
    assert time.monotonic() - began < A_FEW_SECONDS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the first argument must be one of list, show, top, compare, "),
        (["rank"], "got 'rank'"),
        (["show"], "show got 0 runs before its options: the command is python -m search.results show RUN"),
        (["show", "--json", HILL], f"--json must be on or off, got '{HILL}'"),
        (["top", HILL, PPO], "top got 2 runs"),
        (["compare", HILL], "compare got 1 runs"),
        (["list", "results"], "list got 1 runs"),
        (["list", "--results", "/none"], "--results /none is not there"),
        (["list", "--results", "gs://bucket"], "gs:// is not supported"),
        (["show", "/none"], "/none holds no run"),
        (["top", HILL, "--sort", "time"], "--sort must be return, "),
        (["top", HILL, "--limit", "0"], "--limit must be at least 1"),
        (["top", HILL, "--json", "--csv"], "--json and --csv are two ways to print"),
        (["top", PPO, "--sort", "relative_energy"], "relative_energy"),
    ],
)
def test_what_cannot_be_answered(capsys, arguments, said):
    assert program.main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("error: ") and said in streams.err and streams.err.count("\n") == 1
    assert streams.out == ""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["top", "--help"]])
def test_help(capsys, arguments):
    try:
        assert program.main(arguments) == 0
    except SystemExit as ended:
        assert ended.code == 0
    assert "usage: python -m search.results" in capsys.readouterr().out


@pytest.mark.parametrize("how", [[], ["--json"], ["--csv"]])
def test_a_pipe_that_nobody_reads(how):
    command = [sys.executable, "-m", "search.results", "top", PPO, "--limit", "1000", *how]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    running.stdout.close()  # as `head` does when it has enough
    assert running.wait(120) == 141 and running.stderr.read() == ""


def test_the_order_of_rows_is_selections(tmp_path):
    """Ties, equal configurations and all."""
    generator = np.random.default_rng(1)
    rows = [ROWS[k % 8] | {"return": float(generator.integers(3)), "episode": int(k), "episode_id": f"ppo-seed0-{k}"}
            for k in range(60)]  # fmt: skip
    by_codes = {}
    for row in rows:  # equal configurations score alike
        row["return"] = by_codes.setdefault(store.codes_of(row, LAYERS), row["return"])
    write_run(tmp_path / "r", rows)
    wanted = selection.best(rows, 3, lambda row: store.codes_of(row, LAYERS))
    found = query.Rows(Folder(tmp_path / "r"), ABOUT).top(3)
    assert [row["episode_id"] for row in found] == [row["episode_id"] for row in wanted]
