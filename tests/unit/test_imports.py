import ast
from pathlib import Path

import pytest

import approx_env

SOURCES = sorted(Path(approx_env.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_approx_env_imports_neither_ray_nor_search(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module.split(".")[0])
    assert not found & {"ray", "search"}
