"""The benchmark of objectives: which images and labels an aim reads, equal budgets, and no search made twice."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import bench_objective, bench_search
from benchmarks.bench_objective import Aim, Evaluator, aims

ASKED = "--models squeezenet_compact --images 8 --evaluations 8 --seeds 2"


@pytest.fixture(scope="module")
def prepared():
    return bench_search.job.prepare(bench_search.settings("squeezenet_compact", 1, None))


@pytest.fixture
def bench(tmp_path, capsys, prepared, monkeypatch):
    """Runs the command on digits; gives its rows and its output."""
    held_out = {name: replace(p, images=p.images[:16], labels=p.labels[:16]) for name, p in prepared.held_out.items()}
    monkeypatch.setattr(bench_objective.job, "prepare", lambda _: replace(prepared, held_out=held_out))

    def run(arguments: str):
        assert bench_objective.main([*arguments.split(), "--results", str(tmp_path)]) == 0
        return pq.read_table(tmp_path / "objective.parquet").to_pandas(), capsys.readouterr().out

    return run


def test_every_aim_has_the_same_images_to_spend_and_is_searched_once(bench, monkeypatch):
    rows, output = bench(ASKED)
    assert len(rows) == 2 * len(aims(8)) and set(rows["evaluations"] * rows["images"]) == {64}
    assert "| return | 8 of search | 2 |" in output and "| kd+at | 32 of train | 2 |" in output
    monkeypatch.setattr(bench_objective.hill, "Search", None)
    again, _ = bench(ASKED)
    assert len(again) == len(rows)
    drawn, _ = bench(f"{ASKED} --draw")
    assert len(drawn) == len(rows)


def test_only_the_return_reads_labels(prepared):
    for reward, split, images in aims(16):
        problem = Aim(prepared, reward, split, images, 0).problem()
        _, labels = prepared.dataset.load(split, images)
        assert len(problem.images) == images
        own = labels if reward == "return" else bench_objective.predictions(Evaluator(problem))
        assert np.array_equal(problem.labels, own)
        if reward == "agreement":
            assert Evaluator(problem).evaluate([None] * len(problem.network.layers)).return_ == 1


def test_what_is_found_is_the_best_that_was_scored(prepared, monkeypatch):
    evaluator = Evaluator(Aim(prepared, "kd", "search", 16, 0).problem())
    returns, evaluate = [], evaluator.evaluate
    monkeypatch.setattr(evaluator, "evaluate", lambda codes: (returns.append(evaluate(codes)), returns[-1])[1])
    _, best = bench_objective.found(Aim(prepared, "kd", "search", 16, 0), evaluator, 20)
    assert len(returns) == 20 and best == max(score.return_ for score in returns)


def test_no_rows_to_draw(tmp_path, capsys):
    assert bench_objective.main(["--draw", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: there are no rows of searches: leave --draw out to make some\n"
