"""The architecture search as a person uses it, on two points."""

import subprocess
import sys

import pandas as pd
import pytest

from tests.command import node


@pytest.mark.slow
def test_two_points(tmp_path):
    argv = "--model squeezenet_compact --sr 0.125,0.5 --pct3x3 0.25 --epochs 4 --batch-size 64 --run-name r"
    done = subprocess.run(
        [sys.executable, "-m", "search.architecture", *argv.split(), "--results", str(tmp_path), "--address", node()],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(tmp_path / "r" / "epochs.parquet")
    assert set(zip(rows["sr"], rows["pct3x3"], strict=True)) == {(0.125, 0.25), (0.5, 0.25)}
    assert rows.groupby("sr")["epoch"].apply(list).map(lambda epochs: epochs == list(range(1, len(epochs) + 1))).all()
    assert rows["epoch"].max() == 4
    sizes = rows.groupby("sr")["parameters"].first()
    assert sizes[0.125] < sizes[0.5]
    assert (rows["float_bytes"] == 4 * rows["parameters"]).all()
    for along in ("sr", "pct3x3"):
        assert (tmp_path / "r" / f"accuracy-and-size-by-{along}.png").stat().st_size > 5_000
