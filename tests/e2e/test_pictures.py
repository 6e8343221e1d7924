"""The pictures of `docs/` are what their script draws from the committed runs."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def labels(folder: Path) -> dict[str, list[str]]:
    """The texts of each picture. Releases of matplotlib write curves in ways of their own."""
    return {path.name: re.findall(r"<text[^>]*>(.*?)</text>", path.read_text()) for path in folder.glob("*.svg")}


def test_the_script_draws_the_pictures_that_are_there(tmp_path):
    subprocess.run([sys.executable, "docs/pictures.py", "--output", str(tmp_path)], cwd=DOCS.parent, check=True)
    drawn = labels(tmp_path)
    assert drawn == labels(DOCS / "pictures")
    assert set(drawn) == set(re.findall(r"pictures/(\w+\.svg)", (DOCS / "how-it-works.md").read_text()))
    assert all(drawn.values())
