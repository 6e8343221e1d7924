"""What stands beside a run's configuration, as a table."""

import shutil
from pathlib import Path

import pytest

from search.results import beside, report, store
from search.results.folder import Folder
from tests.unit.test_inspection import OLDER


def line(drop: float) -> dict:
    """What an approximation measured; its drop on validation is half a point lower than that on test."""
    made = {f"{split}_{name}": 0.5 for split in store.SPLITS for name in store.MEASURES}
    made |= {f"mac_{kind}{end}": share for end in ("", "_all")
             for kind, share in (("zero", 0.5), ("shared", 0.375), ("exact", 0.125))}  # fmt: skip
    return made | {"validation_drop_points": drop - 0.5, "test_drop_points": drop,
                   "relative_energy_sites": 0.25, "relative_energy": 0.5, "energy_table": "none"}  # fmt: skip


def write(folder: Path, *drops: float, layers: tuple[str, ...] = (), **more: object) -> None:
    """`baselines.parquet`: the chosen configuration, and baselines."""
    names = ("chosen", "natural zeros", "uniform 2-bit")
    more |= {f"{layer}_limit": 80 for layer in layers}
    rows = [{"baseline": name} | line(drop) | more for name, drop in zip(names, drops, strict=False)]
    (folder / store.BASELINES).write_bytes(store.parquet(rows, store.baselines_schema(layers)))


def student(folder: Path, drop: float, seed: int = 0, epochs: float = 1, **more: bool) -> None:
    folder.mkdir(exist_ok=True)
    own = line(drop)
    measures = {name: own[name] for name in own if name.startswith(("mac_", "relative_"))}
    splits = {split: measures | {name: own[f"{split}_{name}"] for name in store.MEASURES} for split in store.SPLITS}
    validation = {"trained": splits["validation"], "corrected": measures | dict.fromkeys(store.MEASURES, 99.0)}
    about = {"chosen": "trained", "correction": "deviation", "recipe": {"epochs": epochs, "seed": seed} | more,
             "validation": validation, "test": splits["test"]}  # fmt: skip
    Folder(folder).write_json(store.STUDENT_SUMMARY, about)


def rows(folder: Path, baselines: bool = True) -> list[tuple[str, ...]]:
    found = beside.lines(Folder(folder), "hill, kd", baselines)
    return [beside.cells(name, measured) for name, measured in found]


def test_baselines_and_students_of_several_seeds_are_lines(tmp_path):
    write(tmp_path, 1.5, 0.0, 4.0)
    student(tmp_path, 1.25)
    for seed, drop in enumerate((0.5, 1.0)):
        student(tmp_path / f"no-tail-{seed}", drop, seed)
    (tmp_path / "episodes").mkdir()
    rest = "50.0% / 37.5% / 12.5%", "0.500"
    assert rows(tmp_path) == [
        ("hill, kd", "1.00 ± 0.98", "1.50 ± 0.98", *rest),
        ("natural zeros", "-0.50 ± 0.98", "0.00 ± 0.98", *rest),
        ("uniform 2-bit", "3.50 ± 0.98", "4.00 ± 0.98", *rest),
        ("student", "0.75 ± 0.98", "1.25 ± 0.98", *rest),
        ("no-tail, 2 seeds", "0.25 ± 0.98", "0.75 ± 0.98 (0.50 to 1.00)", *rest),
    ]
    assert [name for name, *_ in rows(tmp_path, baselines=False)] == ["hill, kd", "student", "no-tail, 2 seeds"]


def test_the_run_s_own_student_is_no_seed_of_another(tmp_path):
    write(tmp_path, 1.5)
    student(tmp_path, 9.0)
    student(tmp_path / "student-0", 1.0)
    assert [(name, test) for name, _, test, *_ in rows(tmp_path)][1:] == [
        ("student", "9.00 ± 0.98"), ("student", "1.00 ± 0.98"),
    ]  # fmt: skip


def test_a_switch_that_is_off_is_one_that_an_older_recipe_lacks(tmp_path):
    write(tmp_path, 1.5)
    student(tmp_path / "made-0", 1.0)
    student(tmp_path / "made-1", 2.0, seed=1, hold_exact=False)
    assert rows(tmp_path)[-1][0] == "made, 2 seeds"


@pytest.mark.parametrize("other", [{"seed": 1, "epochs": 8}, {"seed": 0}, {"seed": 1, "hold_exact": True}])
def test_other_recipes_and_the_same_seed_twice_are_no_seeds(tmp_path, other):
    write(tmp_path, 1.5)
    student(tmp_path / "epochs-1", 1.0)
    student(tmp_path / "epochs-8", 2.0, **other)
    with pytest.raises(ValueError, match="epochs-8 is no other seed of what lies beside it"):
        rows(tmp_path)


@pytest.fixture
def finished(tmp_path):
    folder = tmp_path / "squeezenet-ppo"
    shutil.copytree(OLDER, folder)
    return folder


def write_its_own(folder: Path) -> None:
    """The baselines of a finished run."""
    about = Folder(folder).read_json(store.RUN)
    own = {name: about[name] for name in ("run", "dataset", "schema_version")}
    write(folder, 1.5, 0.0, layers=tuple(about["layers"]), **own, model=about["arguments"]["layers"])


def test_a_run_without_baselines_is_refused(finished, capsys):
    assert report.main(["--beside", str(finished)]) == 2
    assert store.BASELINES in capsys.readouterr().err


def test_the_command_names_network_and_search(finished, capsys):
    write_its_own(finished)
    assert report.main([str(finished), "--beside"]) == 0
    assert "| squeezenet | ppo | 1.00 ± 0.98 |" in capsys.readouterr().out


def test_a_student_whose_file_is_broken_is_told(finished, capsys):
    write_its_own(finished)
    student(finished / "trained-0", 1.0)
    (finished / "trained-0" / store.STUDENT_SUMMARY).write_text("{}")
    assert report.main(["--beside", str(finished)]) == 2
    assert store.STUDENT_SUMMARY in capsys.readouterr().err
