"""A run's results as one page: a file of HTML that needs no server and no network.

`page.write(Folder("results/mine"))` writes results/mine/report.html.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from approx_env.errors import InputError
from search.results.folder import Folder
from search.results.page import comparison, reading, sections, verdict
from search.results.page.parts import Section, Text
from search.results.page.reading import Run

FILE = "report.html"
HERE = Path(__file__).parent


def write(folder: Folder) -> None:
    """Writes a run's page into its folder, whole, and says so.

    Raises:
        InputError: the folder holds no run that can be shown, or cannot be written.
    """
    made = of_run(reading.read(folder), links="")
    try:
        folder.write(FILE, made.encode())
    except OSError as error:
        raise InputError(
            f"{folder}/{FILE} cannot be written ({error}): the results are whole; make room, then "
            f"python -m search.report {folder} --html {FILE}"
        ) from error
    print(f"report in {folder}/{FILE}")


def of_run(run: Run, links: str | None = None, live: bool = False) -> str:
    """A run's page.

    Args:
        links: how the run's folder is reached from the page's, as '' or 'results/mine/'; None: it has no links.
        live: whether the page asks for its successor every few seconds.
    """
    told: list[Section] = []
    missing: list[str] = []
    for section, sentence in sections.ORDER:
        if found := section(run):
            told.append(found)
        elif run.best is not None:
            missing.append(sentence)
    if run.best is None:
        missing.append("The run has not chosen yet. What it chooses, and how good that is, is shown when it has.")
    if missing:
        told.append(Section("missing", "Not on this page", [Text(sentence) for sentence in missing]))
    lead = f"{run.sites}, searched by {run.method}"
    return _page(run.name, lead, verdict.sentence(run), told, links=links, live=live, ended=run.ended)


def of_runs(runs: Sequence[Run]) -> str:
    """One page that compares runs."""
    title = f"{len(runs)} runs"
    return _page(title, "compared by tapsearch", comparison.sentence(runs), comparison.sections(runs))


def _page(title: str, lead: str, verdict: str, told: Sequence[Section], **more: Any) -> str:
    script = (HERE / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["quoted"] = quote
    given = {"links": None, "live": False, "ended": True} | more
    return environment.get_template("page.html").render(
        title=title, lead=lead, verdict=verdict, sections=told, style=Markup((HERE / "page.css").read_text()),
        script=Markup(script), digest=digest, **given,
    )  # fmt: skip


def links_from(folder: Folder, file: Path) -> str | None:
    """How a run's folder is reached from a page; None if it is not on this machine."""
    if not folder.local:
        return None
    return quote(os.path.relpath(folder.path, file.absolute().parent)) + "/"
