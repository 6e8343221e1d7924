"""The README's own commands: search, export, compile and run; the accuracy is that of best.json, to the digit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from search.results import store
from tests import exports

ROOT = Path(__file__).parents[2]


def block(name: str) -> str:
    """The commands below a mark in the README, with this Python."""
    (commands,) = re.findall(rf"<!-- exported {name} -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return commands.replace(".venv/bin/python", sys.executable)


def shell(commands: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.mark.slow
def test_c_says_what_best_json_says(place):
    told = shell(block("c"), place)
    best = json.loads((place / "results" / "small" / store.BEST).read_text())
    assert f"\naccuracy {best['metrics']['acc_student']} (" in told
    assert f"ours on 256 test images: accuracy {best['metrics']['acc_student']}, " in told
    program = exports.compiled(place / "small-c", "-DNETWORK_SHARED", sanitised=False)
    shared = exports.run(program, place / "small-c" / "test.images", place / "small-c" / "test.labels")
    assert shared.splitlines()[:2] == told.splitlines()[-2:]
    counted = [sum(each) for each in zip(*list(exports.counts(shared).values())[:-1], strict=True)]
    cost = best["metrics"]["cost"]
    shares = [count / sum(counted) for count in counted]
    assert [shares[0], shares[1] + shares[2], shares[3]] == pytest.approx(
        [cost["mac_zero"], cost["mac_shared"], cost["mac_exact"]], abs=1e-12
    )


@pytest.mark.slow
def test_icarus_passes(place):
    """After the test above, on its run."""
    if not (place / "results" / "small").exists():
        shell(block("c").splitlines()[0], place)
    assert re.search(r"\nALL \d+ PASS\n$", shell(block("verilog"), place))
