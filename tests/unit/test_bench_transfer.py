"""The benchmark of proposals: a policy has never seen the family that it is judged by, and nothing is made twice."""

import re
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest

from approx_env.scoring.evaluator import Evaluator
from benchmarks import bench_transfer
from search import pretrain, proposal

ASKED = "--teachers squeezenet_compact,resnet8 --iterations 1 --seeds 2"


@pytest.fixture
def trained(monkeypatch):
    """What each policy was trained on; nothing is trained."""
    seen = []

    def train(found, iterations, seed):
        seen.append(([source.network.model for source in found], iterations, seed))
        yield proposal.Policy(), 0.25

    def few(problem, **more):
        return Evaluator(replace(problem, images=problem.images[:8], labels=problem.labels[:8]), **more)

    monkeypatch.setattr(pretrain, "train", train)
    monkeypatch.setattr(bench_transfer, "Evaluator", few)
    return seen


@pytest.fixture
def bench(tmp_path, capsys):
    """Runs the command on digits; gives its rows and its output."""

    def run(arguments: str) -> tuple[pd.DataFrame, str]:
        assert bench_transfer.main([*arguments.split(), "--results", str(tmp_path)]) == 0
        return pq.read_table(tmp_path / "transfer.parquet").to_pandas(), capsys.readouterr().out

    return run


def test_each_family_is_kept_from_the_policy_that_it_is_judged_by(bench, trained):
    rows, output = bench(ASKED)
    assert {(family, seed) for family, seed in zip(rows["family"], rows["seed"], strict=True)} == {
        (family, seed) for family in ("squeezenet", "resnet") for seed in (0, 1)
    }
    assert [seed for *_, seed in trained] == [0, 0, 1, 1] and {iterations for _, iterations, _ in trained} == {1}
    for (family, *_), (models, *_) in zip(rows.groupby(["seed", "family"], sort=False), trained, strict=True):
        assert models and not any(model.startswith(family[1]) for model in models)
    assert rows["model"].map(lambda model: re.split(r"[_\d]", model)[0]).equals(rows["family"])
    for name in ("return", "test_kd", "test_drop_points", "test_exact"):  # what has learnt nothing proposes quintile
        assert rows[f"quintile_{name}"].equals(rows[f"proposed_{name}"])
    assert "| resnet8, digits, standard sites | 2 |" in output and "| 0 of 2 |" in output


def test_what_is_there_is_not_made_again(bench, trained):
    first, _ = bench(ASKED)
    trained.clear()
    again, _ = bench(ASKED)
    drawn, output = bench("--draw")
    assert trained == [] and first.equals(again) and first.equals(drawn) and "resnet8, digits" in output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [("--draw", ["no rows", "--draw"]), ("--teachers lenet,alexnet", ["--teachers", "lenet", "squeezenet"])],
)
def test_bad_input_is_one_clear_error(arguments, names, tmp_path, capsys):
    assert bench_transfer.main([*arguments.split(), "--results", str(tmp_path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert all(name in line for name in names)
