"""What the README says is what the committed runs hold, and its examples run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ratios
from search.results import report

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "results" / "README.md", ROOT / "docs" / "own-network.md"]
EXAMPLES = [
    pytest.param(block, id=f"{document.relative_to(ROOT)}-{position}")
    for document in DOCUMENTS
    for position, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL))
]


def test_results_tables_are_read_from_the_committed_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    reference, readme = Path("results/reference"), (ROOT / "README.md").read_text()
    assert report.table(sorted(reference.iterdir())) in readme
    problems = ("alexnet", "squeezenet", "squeezenet-all")
    folders = [reference / f"{problem}-{search}" for problem in problems for search in ("quintile", "hill")]
    assert report.table_beside(folders) in readme


def test_speed_table_is_read_from_the_committed_measurement():
    measured = json.loads((ROOT / "benchmarks" / "results" / "ratios.json").read_text())
    assert any(set(summaries) == set(ratios.TARGETS) for summaries in measured.values())
    assert ratios.table(measured) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("example", EXAMPLES)
def test_python_example_runs(example):
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
