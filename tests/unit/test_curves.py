"""Curves of a run, read back from what tensorboardX wrote."""

import pytest

from search.results import curves, program
from tests.unit.test_inspection import ABOUT, ROWS, write_part
from tests.unit.test_journal import scalars
from tests.unit.test_results_program import write_run

ARGUMENTS = ABOUT["arguments"] | {"budget_exact": 0.7, "rungs": [32, 64]}


def write_rungs(folder):
    """Two searches, of which the last configuration exceeds the budget; one configuration was promoted."""
    rows = [row | {"mac_exact_all": 0.75 if row["episode"] == 3 else 0.5} for row in ROWS]
    rows += [rows[1] | {"search_images": 64, "episode_id": "ppo-seed0-1@64", "return": 0.05}]
    return write_run(folder, rows[::-1], arguments=ARGUMENTS)


@pytest.fixture
def run(tmp_path):
    return write_rungs(tmp_path / "r")


def test_tensorboard_has_a_curve_of_each_search(run, tmp_path):
    assert program.main(["export-tensorboard", str(run), "--output", str(tmp_path / "board")]) == 0
    assert {path.name for path in (tmp_path / "board").iterdir()} == {"ppo-seed0", "ppo-seed1", "ppo-seed0@64"}
    found = scalars(tmp_path / "board" / "ppo-seed0")
    assert [found["return", k] for k in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [found["best_return", k] for k in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.2])  # the last exceeds it
    assert found["drop_points", 3] == 0.25 and found["mac_exact_all", 3] == 0.75
    assert scalars(tmp_path / "board" / "ppo-seed0@64")["return", 1] == pytest.approx(0.05)


def test_a_row_that_two_drivers_wrote_is_one_point(run):
    write_part(run, ROWS[:1], "part-2.parquet")
    _, found = curves.of_run(str(run))
    assert {name: [point.episode for point in points] for name, points in found} == {
        "ppo-seed0": [0, 1, 2, 3], "ppo-seed1": [0, 1, 2, 3], "ppo-seed0@64": [1],
    }  # fmt: skip


def test_a_folder_that_is_there_is_kept(run, tmp_path, capsys):
    (tmp_path / "board").mkdir()
    assert program.main(["export-tensorboard", str(run), "--output", str(tmp_path / "board")]) == 2
    assert "is there: choose another folder" in capsys.readouterr().err
    assert list((tmp_path / "board").iterdir()) == []


def test_a_board_that_fails_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    def full(folder):
        raise OSError("full")

    monkeypatch.setattr(curves, "SummaryWriter", full)
    assert program.main(["export-tensorboard", str(run), "--output", str(tmp_path / "board")]) == 2
    assert "cannot be written (full)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


def test_a_run_without_rows_has_no_curves(tmp_path, capsys):
    run = write_run(tmp_path / "r", [])
    assert program.main(["export-tensorboard", str(run), "--output", str(tmp_path / "board")]) == 2
    assert "has no rows yet" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
