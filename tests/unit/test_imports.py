import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import approx_env

ROOT = Path(__file__).parents[2]
PACKAGE = Path(approx_env.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_approx_env_imports_neither_ray_nor_search(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module.split(".")[0])
    assert not found & {"ray", "search"}


def test_an_env_runner_loads_no_library_that_it_does_not_need():
    """torchvision and scikit-learn, which only reading a dataset takes, are 110 MB in each process."""
    loaded = (
        "import sys, search.algorithms.ppo.learner; print(*{'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("module", ["search.results.sink", "search.stages.trainable", "search.algorithms.coordinate"])
def test_what_waits_for_scores_loads_no_torch(module):
    """Sink and search start before all that scores, and torch takes two seconds."""
    loaded = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_importing_sets_no_environment_variable_nor_malloc():
    """Commands and workers do."""
    program = """
import os, pkgutil, importlib
def told():
    raise AssertionError("malloc is told something")
import torch, torchvision, tensorboardX, ray, ray.tune, ray.rllib, numba, matplotlib  # which may set their own
before = dict(os.environ)
from approx_env.engines import memory
memory.keep_freed_memory = memory.give_back = told
for package in ("approx_env", "search", "cluster"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
added = {name: value for name, value in os.environ.items() if before.get(name) != value}
print(added, before.keys() - os.environ.keys())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "{} set()"), done.stderr


def test_a_command_sets_what_nobody_has_set():
    from search.workers import processes

    program = (
        "import os; from search.workers import processes as p; p.prepare(); print(*(os.environ[n] for n in p.COMMAND))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in processes.COMMAND}
    for given, number in (({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment | given, capture_output=True, text=True
        )
        assert done.stdout.split() == [number, "0", "1", "1", "0"], done.stderr


def test_what_ray_sets_goes_with_its_session(monkeypatch):
    from search.workers import processes

    monkeypatch.setenv("RAY_THERE", "before")
    monkeypatch.delenv("RAY_NEW", raising=False)
    with processes.ray_s_kept():
        os.environ.update(RAY_THERE="changed", RAY_NEW="1")
    assert os.environ["RAY_THERE"] == "before" and "RAY_NEW" not in os.environ
