"""A newcomer types the commands of `docs/tutorial.md`, in a checkout of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import copy_checkout

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
LONGEST_SECONDS = 600


@pytest.mark.slow
def test_every_command(tmp_path):
    copy_checkout(tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".venv" / "installed").touch()  # `make run` finds it newer than pyproject.toml, and installs nothing
    blocks = re.findall(r"```\n(.*?)```", TUTORIAL, re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    told = []
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=LONGEST_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        told.append(done.stdout)
    in_c, in_json = told[-3], told[-2]
    assert json.loads(in_json) == json.loads((tmp_path / "results/first/best.json").read_text())["metrics"]["acc_student"]
    assert in_json.strip() in in_c
    assert (tmp_path / "both.html").exists() and (tmp_path / "results/first/student.int8.json").exists()
