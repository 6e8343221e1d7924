"""What each layer alone costs: the same scores as the evaluator's, a table, a file."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from approx_env.int8.sites import with_sites
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from search import config, job, sensitivity

ROOT = Path(__file__).parents[2]
COMMAND = "--calib-batches 1 --calib-batch-size 8 --search-images 8 --run-name r --model squeezenet_compact --sites all"


@pytest.fixture(scope="module")
def rows(problem) -> pd.DataFrame:
    return pd.DataFrame(sensitivity.measure(problem))


def alone(problem: Problem, setting: str, layer: str) -> list:
    return [
        each.quintile if (each.name == layer or layer == sensitivity.ALL) == (setting == "approximated") else None
        for each in problem.calibration.layers
    ]


def test_each_layer_is_scored_in_both_settings(problem, rows):
    names = ["one", "two", "three", sensitivity.ALL]
    assert [*zip(rows["setting"], rows["layer"], strict=True)] == [
        (setting, name) for setting in ("approximated", "exact") for name in names
    ]
    for row in rows.to_dict("records"):
        score = Evaluator(problem).evaluate(alone(problem, row["setting"], row["layer"]))
        for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at"):
            assert row[name] == getattr(score, name)
        assert row["return"] == score.return_
        assert [row[f"mac_{kind}"] for kind in ("zero", "v1", "v2", "exact")] == score.shares.tolist()


def test_the_last_rows_are_quintile_and_the_teacher(problem, rows):
    whole, nothing = rows.query("layer == @sensitivity.ALL").to_dict("records")
    assert whole["return"] == Evaluator(problem).evaluate(problem.calibration.quintile).return_
    assert (nothing["drop_points"], nothing["kd"], nothing["at"]) == (0, 0, 0)
    assert nothing["mac_v1"] == nothing["mac_v2"] == 0 < nothing["mac_zero"]


def test_shares_by_hand(problem, rows):
    """Convolution 'one' reads pixels: (3 x 3 windows on 10 x 10 pixels, stride 2, padding 1: 14 x 14 products."""
    pixels, two, three, last = 14 * 14 * 3 * 5, 13 * 13 * 5 * 7, 2 * 2 * 7 * 11, 11 * 2
    fed, everything = {"one": two, "two": three, "three": last}, pixels + two + three + last
    for row in rows.to_dict("records"):
        reads = fed.get(row["layer"], sum(fed.values()))
        assert row["share_of_all_macs"] == pytest.approx(reads / everything)
        assert row["share_of_layers_macs"] == pytest.approx(reads / sum(fed.values()))
        of_all = [row[f"all_mac_{kind}"] for kind in ("zero", "v1", "v2", "exact")]
        assert sum(of_all) == pytest.approx(1)
        for kind in ("zero", "v1", "v2"):
            share = row[f"mac_{kind}"] * sum(fed.values()) / everything
            assert row[f"all_mac_{kind}"] == pytest.approx(share)


def test_table(rows):
    lines = sensitivity.table(rows.to_dict("records")).splitlines()
    assert len(lines) == 2 + 4 and lines[0].startswith(
        "| layer | feeds, of these / of all multiplications | alone approx"
    )
    assert lines[-1].startswith("| all layers | 100.0% / ")
    two = rows.query("layer == 'two'").set_index("setting")
    shown = [f"{two.loc[setting, 'kd']:.4f}" for setting in ("approximated", "exact")]
    cells = lines[3].split(" | ")
    assert cells[0] == "| two" and [cells[3], cells[7]] == shown


def test_a_network_of_one_layer(ramp, small):
    images = small.images[:, :1, :1, :8].copy()
    calibrated = calibration.calibrate(ramp, [images])
    made = sensitivity.measure(Problem(ramp, calibrated, images, small.labels, Reward()))
    assert [row["layer"] for row in made] == ["ramp", sensitivity.ALL] * 2
    assert made[0]["at"] == made[1]["at"] > 0 == made[2]["at"] == made[3]["at"]


def test_the_file_says_what_it_is_of(tmp_path):
    made = job.prepare(config.parse([*COMMAND.split(), "--results", str(tmp_path)]), held_out_splits=())
    assert made.held_out == {}
    measured = sensitivity.measure(made.problem)
    table = pq.read_table(io.BytesIO(sensitivity.parquet(made, measured)))
    assert table.schema.equals(sensitivity.COLUMNS)
    read = table.to_pandas()
    assert len(read) == 2 * (9 + 1)
    about = {"model": "squeezenet_compact", "dataset": "digits", "sites": "all", "search_images": 8}
    assert all((read[name] == value).all() for name, value in about.items())
    assert set(read["teacher"]) == {made.teacher.about["sha256"]}
    codes = read.query("layer == 'fire2_squeeze'")[["t1", "v1", "t2", "v2", "tmax"]].to_numpy().tolist()
    layer = made.problem.calibration.layers[1]
    assert codes == [[*layer.quintile, layer.tmax]] * 2
    assert read.query("layer == @sensitivity.ALL")["t1"].isna().all()


def test_sites_change_the_rows(small):
    """Without the site of 'two' there are two layers; with all sites three again."""
    network = with_sites(small.network, "all")
    assert network.layers == small.network.layers
    source = network.by_name["two"].inputs[0]
    fewer = tuple(
        replace(node, inputs=tuple(source if name == "two" else name for name in node.inputs))
        for node in network.nodes
        if node.name != "two"
    )
    for sites, count in (("standard", 2), ("all", 3)):
        chosen = with_sites(replace(network, nodes=fewer), sites)
        calibrated = calibration.calibrate(chosen, [small.images])
        made = sensitivity.measure(Problem(chosen, calibrated, small.images, small.labels, Reward()))
        assert len(made) == 2 * (count + 1)


def test_the_command(tmp_path, capsys):
    assert sensitivity.main([*COMMAND.split(), "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("squeezenet_compact: 9 layers, which feed ") and "8 search images" in said
    assert "| fire5_squeeze | " in said and said.endswith(f"results in {tmp_path}/r\n")
    assert [path.name for path in (tmp_path / "r").iterdir()] == [sensitivity.FILE]
    kept = (tmp_path / "r" / sensitivity.FILE).read_bytes()
    assert len(pd.read_parquet(tmp_path / "r" / sensitivity.FILE)) == 20
    assert sensitivity.main([*COMMAND.split(), "--results", str(tmp_path)]) == 2
    assert "choose another --run-name" in capsys.readouterr().err
    assert (tmp_path / "r" / sensitivity.FILE).read_bytes() == kept


def test_it_needs_no_ray():
    program = "import sys, search.sensitivity; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
