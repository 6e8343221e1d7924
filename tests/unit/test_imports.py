import ast
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
    loaded = "import sys, search.ppo; print(*{'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
