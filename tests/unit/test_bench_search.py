"""The benchmark of searches: what is asked for once is never scored twice, and what it says of rows."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks import bench_search, search_curves
from search.algorithms import hill

ASKED = "--models squeezenet_compact --images 16 --algorithms quintile,hill --seeds 2"


@pytest.fixture(autouse=True)
def few_are_validated_on_few_images(monkeypatch):
    prepare = bench_search.job.prepare

    def prepared(settings):
        made = prepare(settings)
        held_out = {
            split: replace(problem, images=problem.images[:24], labels=problem.labels[:24])
            for split, problem in made.held_out.items()
        }
        return replace(made, held_out=held_out)

    monkeypatch.setattr(bench_search, "TOP", 2)
    monkeypatch.setattr(bench_search.job, "prepare", prepared)


@pytest.fixture
def bench(tmp_path, capsys):
    """Runs the command on digits; gives its rows, its choices and its output."""

    def run(arguments: str):
        assert bench_search.main([*arguments.split(), "--results", str(tmp_path)]) == 0
        tables = [pq.read_table(tmp_path / f"{name}.parquet").to_pandas() for name in ("search", "search-choices")]
        return *tables, capsys.readouterr().out

    return run


@pytest.fixture
def scored(monkeypatch) -> list:
    """Grows by each configuration that is scored."""
    seen, evaluate = [], bench_search.Evaluator.evaluate

    def noted(self, codes):
        seen.append((len(self.labels), codes))
        return evaluate(self, codes)

    monkeypatch.setattr(bench_search.Evaluator, "evaluate", noted)
    return seen


def test_what_was_cut_off_goes_on_and_ends_as_if_it_was_not(bench, scored, tmp_path):
    bench(f"{ASKED} --evaluations 9")
    before = len(scored)
    rows, choices, output = bench(f"{ASKED} --evaluations 12")
    assert sum(images == 16 for images, _ in scored[before:]) == 2 * 3  # three more of each hill climbing
    assert rows.groupby(["algorithm", "seed"]).size().to_dict() == {
        ("hill", 0): 12, ("hill", 1): 12, ("quintile", 0): 1, ("quintile", 1): 1,
    }  # fmt: skip
    assert set(choices["evaluations"]) == {1, 9, 12}
    (tmp_path / "search.parquet").unlink()
    again, _, _ = bench(f"{ASKED} --evaluations 12")
    order, told = ["algorithm", "seed", "evaluation"], ["return", "drop_points", "layer_forwards"]
    assert again.sort_values(order)[told].values.tolist() == rows.sort_values(order)[told].values.tolist()
    assert "| hill | 2 |" in output and len(list(tmp_path.glob("search-squeezenet_compact-*-16.svg"))) == 1


def test_what_begins_by_gradients_has_them(bench):
    rows, _, _ = bench("--models squeezenet_compact --images 16 --algorithms reconstruction --seeds 1 --evaluations 1")
    assert len(rows) == 1


def test_an_environment_that_chooses_how_numpy_rounds_changes_no_proposal():
    """CMA-ES's eigenvectors of equal eigenvalues hang on the last bit."""
    code = """if True:
        from benchmarks import bench_search
        from approx_env import env
        from search.algorithms import cma
        from search.objectives import Score

        search = cma.Search(env.shipped_problem("squeezenet_compact").calibration, 0)
        for generation in range(3):
            asked = search.ask(search.size)
            search.tell(asked, [Score((sum(codes[0] for codes in one) % 7,)) for one in asked])
        print(search.ask(1))
    """
    told = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                       env=os.environ | {"OPENBLAS_CORETYPE": kernel}).stdout
        for kernel in ("Prescott", "Sandybridge", "Haswell", "SkylakeX")
    }  # fmt: skip
    assert len(told) == 1


def test_what_is_there_is_drawn_without_a_search(bench, scored):
    rows, _, _ = bench(f"{ASKED} --evaluations 4")
    before = len(scored)
    _, _, whole = bench("--draw")
    _, _, part = bench("--draw --evaluations 2")
    assert len(scored) == before and "| quintile | 2 |" in whole
    assert "best return at 4 |" in whole and "best return at 2 |" in part and "return at 4" not in part
    best = rows[(rows["algorithm"] == "hill") & (rows["evaluation"] < 2)].groupby("seed")["return"].max().mean()
    assert f"| hill | 2 | {best:.4f} |" in part


def test_rows_of_other_codes_are_refused(bench, tmp_path, monkeypatch, capsys):
    bench(f"{ASKED} --evaluations 2")
    monkeypatch.setattr(bench_search, "search_options", lambda module, prepared: hill.Options(width=0.5))
    asked = ASKED.replace("quintile,", "")
    assert bench_search.main([*f"{asked} --evaluations 3".split(), "--results", str(tmp_path)]) == 2
    assert "evaluation 1 has other codes in its row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("--algorithms climb", "there is no climb"), ("--models vgg", "there is no vgg"), ("--seeds 0", "at least 1")],
)
def test_bad_arguments_end_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        bench_search.main(arguments.split())
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_without_rows_there_is_nothing_to_draw(tmp_path, capsys):
    assert bench_search.main(["--draw", "--results", str(tmp_path)]) == 2
    assert "has no rows" in capsys.readouterr().err


def rows(algorithm: str, *seeds: list[float]) -> list[dict]:
    return [
        {"algorithm": algorithm, "seed": seed, "evaluation": k, "return": value, "layer_forwards": 2, "seconds": 0.01}
        for seed, values in enumerate(seeds)
        for k, value in enumerate(values)
    ]


def line(frame: pd.DataFrame, algorithm: str) -> list[str]:
    lines = search_curves.table(frame, pd.DataFrame()).splitlines()
    (found,) = (line for line in lines if line.startswith(f"| {algorithm} |"))
    return [cell.strip() for cell in found.split("|")[1:-1]]


def test_the_best_so_far_never_falls_and_ends_with_the_search():
    curves = search_curves.best_so_far(pd.DataFrame(rows("hill", [0.1, 0.3, 0.2], [0.4])))
    assert curves.fillna(-1).to_numpy().T.tolist() == [[0.1, 0.3, 0.3], [0.4, -1, -1]]


def test_a_search_that_was_cut_off_counts_for_no_mean_and_no_difference():
    frame = pd.DataFrame(rows("hill", [0.5, 0.5], [0.1]) + rows("de", [0.5, 0.6], [0.4, 0.9]) + rows("quintile", [0.2]))
    assert line(frame, "hill")[1:3] == ["1 of 2", ""]
    assert line(frame, "de")[1:4] == ["2", "0.7500", "+0.1000 (one seed)"]
    assert line(frame, "quintile")[1:3] == ["1", "0.2000"]  # it is fixed, and so it is whole
    alone = pd.DataFrame(rows("hill", [0.5]) + [row | {"seed": 7} for row in rows("de", [0.6])])
    assert line(alone, "de")[3] == ""  # no seed is shared


def test_searches_of_other_teachers_and_sites_are_other_tables(tmp_path, capsys):
    common = {"model": "alexnet", "images": 16, "codes": [1, 2, 3, 4]}
    problems = [("old", "standard"), ("new", "standard"), ("new", "all")]
    both = [row | common | dict(zip(("teacher", "sites"), each, strict=True))
            for each in problems for row in rows("hill", [0.5])]  # fmt: skip
    names = bench_search.ROWS, bench_search.CHOICES
    bench_search.Tables(tmp_path, names, bench_search.KEY, "").add(bench_search.ROWS, both)
    assert bench_search.main(["--draw", "--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert all(f"alexnet, {sites} sites (teacher {teacher})" in told for teacher, sites in problems)
    assert len(list(tmp_path.glob("search-alexnet-*-16.svg"))) == 3


def test_rows_of_an_older_version_are_refused(tmp_path, capsys):
    pd.DataFrame(rows("hill", [0.5])).to_parquet(tmp_path / "search.parquet")
    assert bench_search.main(["--draw", "--results", str(tmp_path)]) == 2
    assert "has no column images, model, sites, teacher" in capsys.readouterr().err


def test_sites_decide_what_is_searched(bench):
    rows, choices, output = bench(f"{ASKED} --evaluations 2 --sites all")
    assert set(rows["sites"]) == set(choices["sites"]) == {"all"} and "squeezenet_compact, all sites" in output
    usual, _, _ = bench(f"{ASKED} --evaluations 2")
    lengths = {sites: len(own["codes"].iloc[0]) for sites, own in usual.groupby("sites")}
    assert lengths["all"] > lengths["standard"]


def test_differences_are_of_the_same_seeds():
    """By hand: +0.1 in one seed and +0.3 in the other; the third has no partner."""
    frame = pd.DataFrame(rows("hill", [0.5], [0.1]) + rows("de", [0.6], [0.4], [9.0]))
    assert "+0.2000 (+0.1000 to +0.3000)" in line(frame, "de")


def test_an_interval_of_equal_values_has_no_width():
    assert search_curves.interval(np.full(5, 0.25)) == (0.25, 0.25)
    low, high = search_curves.interval(np.arange(100.0))
    assert low < 49.5 < high and high - low == pytest.approx(4 * 2.9, rel=0.1)
