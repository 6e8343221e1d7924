"""Scores are the same on every machine, to the last bit: by every engine and every instruction set that is here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from approx_env import env
from approx_env.engines import build as engines
from approx_env.scoring import evaluator
from approx_env.scoring.evaluator import Evaluator
from tests.twins import ENGINES

SCORES = json.loads((Path(__file__).parent.parent / "golden" / "scores.json").read_text())
FIELDS = ("accuracy", "soft_accuracy", "kd", "at")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", SCORES)
def test_scores(model, engine, monkeypatch):
    """The quintile configuration, and five random ones (one, on the slow engine)."""
    monkeypatch.setattr(engines, "build", lambda network, name, device, readers=(): ENGINES[engine](network, readers))
    scorer = Evaluator(env.shipped_problem(model))
    for row in SCORES[model][:2] if engine == "portable" else SCORES[model]:
        score = scorer.evaluate(row["codes"])
        assert {name: getattr(score, name) for name in FIELDS} == {name: row[name] for name in FIELDS}
        assert score.return_ == row["return"]
        assert score.shares.tolist() == row["shares"]
        assert score.layer_shares.tolist() == row["layer_shares"]


@pytest.mark.parametrize(("chunk", "few"), [(5, 16), (64, 3), (1000, 1000)])
def test_chunks_of_images_change_no_bit(chunk, few, monkeypatch):
    problem = env.shipped_problem("squeezenet_compact")
    monkeypatch.setattr(evaluator, "FEW", few)
    monkeypatch.setattr(engines.VectorEngine, "chunk", chunk)
    row = SCORES["squeezenet_compact"][1]
    score = Evaluator(problem).evaluate(row["codes"])
    assert {name: getattr(score, name) for name in FIELDS} == {name: row[name] for name in FIELDS}


def test_the_order_of_images_changes_no_bit():
    problem, row = env.shipped_problem("squeezenet_compact"), SCORES["squeezenet_compact"][2]
    turned = replace(problem, images=problem.images[::-1].copy(), labels=problem.labels[::-1].copy())
    score = Evaluator(turned).evaluate(row["codes"])
    assert {name: getattr(score, name) for name in FIELDS} == {name: row[name] for name in FIELDS}
