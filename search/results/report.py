"""Compares runs in one Markdown table: `python -m search.report results/reference/*`.

With `--beside` the table is of what stands beside each run's configuration: baselines, and students. With `--html FILE`
it writes a page instead, of one run or of several, and with `--live` it serves the page of one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from approx_env import markdown
from approx_env.errors import InputError, exit_status
from approx_env.int8.cost import KINDS
from search import objectives
from search.results import beside, inspection, store
from search.results.folder import Folder

BESIDE, HTML, LIVE = "--beside", "--html", "--live"
USAGE = f"python -m search.report [{BESIDE} | {HTML} FILE | {LIVE}] RUN [RUN ...]"
HELP = f"""usage: {USAGE}

Prints finished runs as a Markdown table. A run is a folder that search.run wrote, or s3://bucket/path.
{BESIDE}: prints what stands beside each run's configuration: baselines, if it is not quintile, and the students in its
folder and in those below it. Folders NAME-0, NAME-1 and so on are seeds of one recipe.
{HTML} FILE: writes one page that needs no network: the whole report of one run, or a comparison of several.
{LIVE}: serves the page of one run to browsers of this machine, and reads its rows again every few seconds."""
HEADS = (
    "network", "teacher on test, float / INT8", "search", "episodes x seeds",
    "best return of each seed, mean (lowest)", "drop on validation, points", "drop on test, points",
    "gap: drop on search minus on validation",
    " / ".join(KINDS), "energy of all multiplications",
)  # fmt: skip
NO_ENERGY = "-"  # of a run from before there was a cost model


def row(place: str | os.PathLike) -> tuple[str, ...]:
    """The table's cells of one finished run.

    Raises:
        InputError: the folder holds no finished run, or files that are damaged or of another run.
    """
    about, best, scored, chosen = _finished(Folder(place))
    metrics, arguments = best["metrics"], about["arguments"]
    seeds = scored["seed"].nunique()
    scored = scored[scored["search_images"] == scored["search_images"].max()]  # returns on fewer images are others
    if (budget := arguments.get("budget_exact")) is not None:  # none may be chosen beyond it
        scored = scored[scored["mac_exact_all"] <= budget]
    best_returns = scored.groupby("seed")["return"].max()
    return (
        _network(best, arguments),
        f"{metrics['float_teacher']['test']:.1%} / {metrics['acc_teacher']:.1%}",
        objectives.method(arguments),
        f"{arguments['episodes']} x {seeds}",
        f"{best_returns.mean():.4f} ({best_returns.min():.4f})",
        f"{metrics['validation']['drop_points']:.2f}",
        f"{metrics['acc_drop']:.2f}",
        f"{chosen['drop_points'] - metrics['validation']['drop_points']:.2f}",
        " / ".join(f"{chosen[f'mac_{kind}']:.1%}" for kind in KINDS),
        _energy(metrics.get("cost")),
    )


def _network(best: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    return best["model"] + (", all sites" if arguments.get("sites") == "all" else "")


def _energy(cost: Mapping[str, Any] | None) -> str:
    """Of all multiplications over the exact network's, by which table."""
    return f"{cost['relative_energy']:.3f} ({cost['table']})" if cost else NO_ENERGY


def _finished(folder: Folder) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame, pd.Series]:
    """run.json, best.json, all rows and the chosen one."""
    try:
        about = inspection.run_json(folder)
        best = inspection.best_json(folder, about)
        faults = inspection.faults(folder, about)
        scored = pd.DataFrame() if faults else store.read(folder)
        chosen = pd.Series() if faults else inspection.chosen(best, scored)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no finished run ({error}): name a folder that search.run wrote") from error
    if faults:
        raise InputError([f"{folder}/{name} is damaged or of another run ({reason}): remove it, or bring back what "
                          "was there" for name, reason in faults.items()])  # fmt: skip
    return about, best, scored, chosen


def table(folders: Sequence[str | os.PathLike]) -> str:
    """The whole table, runs in the order given; without the last column if none of them knows its energy."""
    rows = [row(folder) for folder in folders]
    last = None if any(cells[-1] != NO_ENERGY for cells in rows) else -1
    return markdown.table(HEADS[:last], [cells[:last] for cells in rows])


def table_beside(folders: Sequence[str | os.PathLike]) -> str:
    """The table of what stands beside each run's configuration.

    Raises:
        InputError: a folder holds no finished run with baselines, or files that are damaged.
    """
    rows = []
    for folder in map(Folder, folders):
        about, best, *_ = _finished(folder)
        arguments = about["arguments"]
        try:
            inspection.check_baselines(folder, about)
            found = list(beside.lines(folder, objectives.method(arguments), arguments["algorithm"] != "quintile"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"what stands beside {folder} cannot be read ({error}): {BESIDE} wants {store.BASELINES}, and "
                f"students whose {store.STUDENT_SUMMARY} is whole; NAME-0, NAME-1 and so on are seeds of one recipe"
            ) from error
        rows += [(_network(best, arguments), *beside.cells(name, measured)) for name, measured in found]
    return markdown.table(beside.HEADS, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    return exit_status(lambda: _report(list(sys.argv[1:] if argv is None else argv)))


def _report(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    options = [argument for argument in arguments if argument.startswith("-")]
    if unknown := [option for option in options if option not in (BESIDE, HTML, LIVE)]:
        raise InputError(f"{unknown[0]} is no option of search.report: {USAGE}")
    if len(options) > 1:
        raise InputError(f"{options[0]} and {options[1]} do not go together: give one of {BESIDE}, {HTML} and {LIVE}")
    file = _file(arguments) if HTML in options else None
    runs = [argument for argument in arguments if argument not in options]
    if file is not None:
        runs.remove(file)
    if not runs:
        raise InputError("name the folders of one or more runs: python -m search.report results/reference/*")
    if LIVE in options:
        if len(runs) > 1:
            raise InputError(f"{LIVE} serves one run, and {len(runs)} are named: python -m search.report {LIVE} RUN")
        _serve(runs[0])
    elif file is not None:
        _write_page(runs, Path(file))
    else:
        print(table_beside(runs) if BESIDE in options else table(runs))


def _file(arguments: Sequence[str]) -> str:
    """What stands behind `--html`."""
    following = [*arguments, ""][arguments.index(HTML) + 1]
    if not following or following.startswith("-"):
        raise InputError(f"{HTML} must name the file to write: python -m search.report RUN {HTML} FILE")
    return following


def _write_page(runs: Sequence[str], file: Path) -> None:
    from search.results import page
    from search.results.page import reading

    found = [reading.read(Folder(run)) for run in runs]
    made = page.of_runs(found) if len(found) > 1 else page.of_run(found[0], page.links_from(found[0].folder, file))
    try:
        Folder(file.parent).write(file.name, made.encode())
    except (OSError, ValueError) as error:
        raise InputError(f"{HTML} {file} cannot be written ({error}): name a file in a folder that is there") from error
    print(f"page in {file}")


def _serve(run: str) -> None:
    from search.results.page import live

    live.serve(Folder(run), lambda address: print(f"{address}\nCtrl-C ends it", flush=True))
