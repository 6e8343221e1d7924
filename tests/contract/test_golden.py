"""Scores stay what they were before the engines were made fast (commit 047a17a, oneDNN's kernels alone)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from approx_env import engines, env
from approx_env.evaluator import Evaluator

SCORES = json.loads((Path(__file__).parent.parent / "golden" / "scores.json").read_text())
# Rounding ties move a code by one, here and there: what that did to any of these scores was at most a third of this.
TOLERANCE = {"accuracy": 0, "soft_accuracy": 2e-4, "kd": 1e-3, "at": 5e-5}


@pytest.mark.parametrize("name", engines.ENGINES)
@pytest.mark.parametrize("model", SCORES)
def test_scores(model, name):
    """The quintile configuration, and five random ones (one, on the slow engine)."""
    problem = env.shipped_problem(model)
    evaluator = Evaluator(replace(problem, engine=name))
    for row in SCORES[model] if name == "vector" else SCORES[model][:2]:
        score = evaluator.evaluate(row["codes"])
        for field, tolerance in TOLERANCE.items():
            assert getattr(score, field) == pytest.approx(row[field], rel=0, abs=tolerance), field
        assert score.shares == pytest.approx(row["shares"], abs=1e-4)
