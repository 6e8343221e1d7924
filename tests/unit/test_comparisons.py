"""What stands beside a run's configuration, as a table."""

import shutil
from pathlib import Path

import pytest

from search.results import comparisons, report, store
from search.results.folder import Folder

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "squeezenet-random"


def line(drop: float) -> dict:
    """What an approximation measured; its drop on validation is half a point lower than that on test."""
    made = {f"{split}_{name}": 0.5 for split in store.SPLITS for name in store.MEASURES}
    made |= {f"mac_{kind}{end}": share for end in ("", "_all")
             for kind, share in (("zero", 0.5), ("shared", 0.375), ("exact", 0.125))}  # fmt: skip
    return made | {"validation_drop_points": drop - 0.5, "test_drop_points": drop,
                   "relative_energy_sites": 0.25, "relative_energy": 0.5}  # fmt: skip


def write(folder: Path, *drops: float) -> None:
    """`baselines.parquet`: the chosen configuration, and baselines."""
    names = ("chosen", "natural zeros", "uniform 2-bit")
    rows = [{"baseline": name} | line(drop) for name, drop in zip(names, drops, strict=False)]
    (folder / store.BASELINES).write_bytes(store.parquet(rows, store.baselines_schema([])))


def student(folder: Path, drop: float) -> None:
    folder.mkdir(exist_ok=True)
    own = line(drop)
    measures = {name: own[name] for name in own if "validation" not in name and "test" not in name}
    splits = {split: measures | {name: own[f"{split}_{name}"] for name in store.MEASURES} for split in store.SPLITS}
    validation = {"trained": splits["validation"], "corrected": measures | dict.fromkeys(store.MEASURES, 99.0)}
    about = {"chosen": "trained", "validation": validation, "test": splits["test"]}
    Folder(folder).write_json(store.STUDENT_SUMMARY, about)


def test_baselines_and_students_of_several_seeds_are_lines(tmp_path):
    write(tmp_path, 1.5, 0.0, 4.0)
    student(tmp_path, 1.25)
    for seed, drop in enumerate((0.5, 1.0)):
        student(tmp_path / f"no-tail-{seed}", drop)
    (tmp_path / "episodes").mkdir()
    table = comparisons.table([("alexnet", "hill, kd", Folder(tmp_path))]).splitlines()
    rest = " | 50.0% / 37.5% / 12.5% | 0.500 |"
    assert table[2:] == [
        "| alexnet | hill, kd | 1.00 ± 0.98 | 1.50 ± 0.98" + rest,
        "| alexnet | natural zeros | -0.50 ± 0.98 | 0.00 ± 0.98" + rest,
        "| alexnet | uniform 2-bit | 3.50 ± 0.98 | 4.00 ± 0.98" + rest,
        "| alexnet | student | 0.75 ± 0.98 | 1.25 ± 0.98" + rest,
        "| alexnet | no-tail, 2 seeds | 0.25 ± 0.98 | 0.75 ± 0.98 (0.50 to 1.00)" + rest,
    ]


def test_quintile_stands_alone(tmp_path):
    write(tmp_path, 1.5, 0.0)
    assert [name for name, _ in comparisons.lines(Folder(tmp_path), "quintile")] == ["quintile"]


@pytest.fixture
def finished(tmp_path):
    folder = tmp_path / "squeezenet-random"
    shutil.copytree(REFERENCE, folder)
    return folder


def test_a_run_without_baselines_is_refused(finished, capsys):
    assert report.main(["--beside", str(finished)]) == 2
    assert store.BASELINES in capsys.readouterr().err


def test_the_command_names_network_and_search(finished, capsys):
    write(finished, 1.5, 0.0)
    assert report.main([str(finished), "--beside"]) == 0
    assert "| squeezenet | random | 1.00 ± 0.98 |" in capsys.readouterr().out


def test_a_student_whose_file_is_broken_is_told(finished, capsys):
    write(finished, 1.5, 0.0)
    student(finished / "trained-0", 1.0)
    (finished / "trained-0" / store.STUDENT_SUMMARY).write_text("{}")
    assert report.main(["--beside", str(finished)]) == 2
    assert store.STUDENT_SUMMARY in capsys.readouterr().err
