"""A wheel holds all that the main job needs: installed alone, it runs outside of the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.command import copy_checkout

PACKAGES = ("approx_env", "search")
SEARCH = "-m search.run --layers alexnet --algorithm random --episodes 2 --search-images 8"


def succeed(*command: object, **options) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout without leftovers of earlier builds."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    """A wheel, built as `pip install` builds it."""
    folder = tmp_path_factory.mktemp("wheels")
    succeed(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, checkout)
    (made,) = folder.iterdir()
    return made


@pytest.mark.slow
def test_it_holds_every_module_and_every_shipped_teacher(checkout, wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kept = (".py", ".json", ".safetensors", ".toml", ".c", ".h", ".v", ".html", ".css", ".js")
    files = [path for package in PACKAGES for path in (checkout / package).rglob("*") if path.suffix in kept]
    assert held == {str(path.relative_to(checkout)) for path in files}


@pytest.mark.slow
def test_the_main_job_runs_from_it(wheel, tmp_path):
    environment = tmp_path / "environment"
    succeed(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    succeed(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    # What it depends on is here already. An editable install of the checkout is not seen: that takes its own .pth.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = "import approx_env, search; print(approx_env.__file__, search.__file__)"
    told = subprocess.run([python, "-c", where], cwd=tmp_path, env=outside, capture_output=True, text=True, check=True)
    assert told.stdout.count(str(site)) == 2
    succeed(python, *SEARCH.split(), "--run-name", "r", cwd=tmp_path, env=outside)
    assert (tmp_path / "results" / "r" / "best.json").exists()
