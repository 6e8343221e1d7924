"""Lists, shows, ranks and compares runs, and exports them: `python -m search.results COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from approx_env import options
from approx_env.errors import InputError, exit_status
from approx_env.options import integer, option, switch
from search.results import listing, summary
from search.results.query import DIRECTIONS

PROGRAM = "python -m search.results"
TOP = ("trial", "episode", "search_images", "return", "accuracy", "drop_points", "kd", "at", "mac_zero", "mac_exact")


@dataclass(frozen=True)
class Printed:
    """How records are printed."""

    json: bool = switch(False, "print a JSON object a line instead of a table")
    csv: bool = switch(False, "print CSV instead of a table")


@dataclass(frozen=True)
class Listed(Printed):
    """The options of `list`."""

    results: str = option("results", "folder that holds the runs: a path, or s3://bucket/path", metavar="DIR")
    model: str | None = option(None, "only runs of this network", metavar="NAME")
    algorithm: str | None = option(None, "only runs of this algorithm", metavar="NAME")
    sort: str = option("started", "column to sort by; of these times and scores the best or newest first",
                       choices=tuple(summary.COLUMNS))  # fmt: skip
    limit: int | None = integer(None, "print the first N of them (default: all)", 1)


@dataclass(frozen=True)
class Ranked(Printed):
    """The options of `top`."""

    sort: str = option("return", "score to rank by, the best first", choices=tuple(DIRECTIONS))
    limit: int = integer(10, "print the first N of them", 1)


@dataclass(frozen=True)
class ToFile:
    """The options of `export-optuna`."""

    output: str | None = option(None, "file to make", metavar="FILE")
    force: bool = switch(False, "replace the file if it is there")


@dataclass(frozen=True)
class ToFolder:
    """The options of `export-tensorboard`."""

    output: str | None = option(None, "folder to make", metavar="DIR")


@dataclass(frozen=True)
class ToServer:
    """The options of `export-mlflow`."""

    tracking: str | None = option(
        None, "where MLflow keeps runs: sqlite:///FILE.db, or http://HOST:PORT", metavar="URI"
    )


def _list(places: Sequence[str], settings: Listed) -> None:
    wanted = {"model": settings.model, "algorithm": settings.algorithm}
    found = [
        each
        for each in summary.summaries(settings.results)
        if all(value in (None, each[name]) for name, value in wanted.items())
    ]
    known = [each for each in found if each[settings.sort] is not None]
    known.sort(key=lambda each: each[settings.sort], reverse=summary.COLUMNS[settings.sort])
    ordered = [*known, *(each for each in found if each[settings.sort] is None)]
    hidden = ("folder", "objective", "sites", "episodes", "best_drop_points")
    _print(ordered[: settings.limit], settings, list(summary.COLUMNS), hidden)


def _show(places: Sequence[str], settings: Printed) -> None:
    told = summary.details(places[0])
    searches, chosen = told["searches"], told["chosen"]
    if settings.json:
        listing.print_json([told])
        return
    heads = ("trial", "seed", "scored", "best_return", "best_drop_points", "first_time", "last_time")
    if settings.csv:
        listing.print_csv(searches, heads)
        return
    facts = {name: told[name] for name in (*summary.COLUMNS, "teacher", "commit")}
    if told["selection"]:
        facts |= {"chosen": told["selection"]["episode_id"], "chosen by": told["selection"].get("rule")}
    _print_facts(facts)
    listing.print_table(searches, heads)
    if chosen:
        codes = [{"layer": layer, **{name.removesuffix("_code"): code for name, code in own.items()}}
                 for layer, own in chosen.items()]  # fmt: skip
        listing.print_table(codes, list(codes[0]))


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {listing.shown(name, value)}")


def _top(places: Sequence[str], settings: Ranked) -> None:
    _, _, rows = summary.read(places[0])
    whole = settings.json or settings.csv
    columns = list(dict.fromkeys((*TOP, settings.sort)))
    found = rows.top(settings.limit, settings.sort, () if whole else columns)
    _print(found, settings, list(found[0]) if whole and found else columns)


def _compare(places: Sequence[str], settings: Printed) -> None:
    found = summary.compared(places)
    if settings.json:
        listing.print_json(found)
        return
    flat = [{name: value for name, value in each.items() if name != "arguments"}
            | {options.flag(name): value for name, value in each["arguments"].items()} for each in found]  # fmt: skip
    if settings.csv:
        listing.print_csv(flat, list(flat[0]))
        return
    heads = ["", *(f"{number}: {each['run']}" for number, each in enumerate(found, 1))]
    lines = [
        dict(zip(heads, (name.replace("_", " "), *(listing.shown(name, each[name]) for each in flat)), strict=True))
        for name in flat[0]
        if name != "run"
    ]
    listing.print_table(lines, heads)


def _export_optuna(places: Sequence[str], settings: ToFile) -> None:
    from search.results import study

    count = study.export(places[0], settings.output, force=settings.force)
    print(f"{count} trials in {settings.output}: optuna-dashboard {settings.output} shows them")


def _export_tensorboard(places: Sequence[str], settings: ToFolder) -> None:
    from search.results import curves

    count = curves.to_tensorboard(places[0], settings.output)
    print(f"{count} points in {settings.output}: tensorboard --logdir {settings.output} shows them")


def _export_mlflow(places: Sequence[str], settings: ToServer) -> None:
    from search.results import mlflow_runs

    count = mlflow_runs.export(places[0], settings.tracking)
    print(f"{count} points in experiment {mlflow_runs.EXPERIMENT} of {settings.tracking}")


def _print(
    records: Sequence[listing.Record], settings: Printed, columns: list[str], hidden: Sequence[str] = ()
) -> None:
    """Prints records; a table leaves the `hidden` columns out."""
    if settings.json:
        listing.print_json(records)
    elif settings.csv:
        listing.print_csv(records, columns)
    else:
        listing.print_table(records, [name for name in columns if name not in hidden])


class Command(NamedTuple):
    """What stands behind a word on the command line."""

    run: Callable[[Sequence[str], Any], None]  # takes the runs that were named, and the options
    table: type
    runs: str  # that it wants: 'RUN', or 'RUN RUN...'; empty if it wants none
    help: str


COMMANDS = {
    "list": Command(_list, Listed, "", "prints a line for each run of a folder"),
    "show": Command(_show, Printed, "RUN", "prints what a run is, its searches, and the codes that it chose"),
    "top": Command(_top, Ranked, "RUN", "prints the best distinct configurations of a run"),
    "compare": Command(_compare, Printed, "RUN RUN...", "prints runs side by side, with the options that differ"),
    "export-optuna": Command(_export_optuna, ToFile, "RUN", "writes a run as an Optuna study, in a journal file"),
    "export-tensorboard": Command(_export_tensorboard, ToFolder, "RUN", "writes the curves of a run for TensorBoard"),
    "export-mlflow": Command(_export_mlflow, ToServer, "RUN", "writes options and curves of a run to MLflow"),
}


def _contradictions(settings: Any, given: set[str]) -> Iterator[tuple[set[str], str]]:
    if isinstance(settings, Printed) and settings.json and settings.csv:
        yield {"json", "csv"}, "--json and --csv are two ways to print: leave one out"
    for name in ("output", "tracking"):
        if getattr(settings, name, "") is None:
            yield {name}, f"{options.flag(name)} must say where to: it has no default"


def _usage() -> str:
    told = "A run is a folder that search.run wrote, or s3://bucket/path. COMMAND --help tells the options of each."
    commands = "\n".join(f"  {name:20} {command.help}" for name, command in COMMANDS.items())
    return f"usage: {PROGRAM} COMMAND [RUN...] [OPTIONS]\n\n{told}\n\n{commands}"


def _run(argv: list[str] | None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return
    name = argv[0] if argv else None
    if name not in COMMANDS:
        given = "nothing" if name is None else repr(name)
        raise InputError(f"the first argument must be one of {', '.join(COMMANDS)}, got {given}: see {PROGRAM} --help")
    command = COMMANDS[name]
    end = next((place for place, part in enumerate(argv) if part.startswith("-")), len(argv))
    places, wanted = argv[1:end], f"{PROGRAM} {name} {command.runs}".rstrip()
    settings = options.parse(command.table, wanted, f"It {command.help}.", argv[end:], _contradictions)
    least, most = {"": (0, 0), "RUN": (1, 1)}.get(command.runs, (2, len(places)))
    if not least <= len(places) <= most:
        raise InputError(f"{name} got {len(places)} runs before its options: the command is {wanted} [OPTIONS]")
    command.run(places, settings)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
