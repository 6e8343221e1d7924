"""Compares runs in one Markdown table: `python -m search.report results/reference/*`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from approx_env.errors import InputError, exit_status, run_module

if __name__ == "__main__":  # before the rest is loaded
    sys.exit(run_module("search.report"))

from search import store
from search.storage import Folder

HEADER = (
    "| network | teacher on test, float / INT8 | search | episodes x seeds | best return of each seed, mean (lowest) "
    "| drop on validation, points | drop on test, points | zero / v1 / v2 / exact |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(place: str | os.PathLike) -> str:
    """The table's line of one finished run.

    Raises:
        InputError: the folder holds no finished run.
    """
    folder = Folder(place)
    try:
        best, about = folder.read_json(store.BEST), folder.read_json(store.RUN)
        scored = store.read(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no finished run ({error}): name a folder that search.run wrote") from error
    metrics, arguments = best["metrics"], about["arguments"]
    seeds = scored["seed"].nunique()
    scored = scored[scored["search_images"] == scored["search_images"].max()]  # returns on fewer images are others
    best_returns = scored.groupby("seed")["return"].max()
    chosen = scored.set_index("episode_id").loc[best["selection"]["episode_id"]]
    cells = (
        best["model"],
        f"{metrics['float_teacher']['test']:.1%} / {metrics['acc_teacher']:.1%}",
        arguments["algorithm"],
        f"{arguments['episodes']} x {seeds}",
        f"{best_returns.mean():.4f} ({best_returns.min():.4f})",
        f"{metrics['validation']['drop_points']:.2f}",
        f"{metrics['acc_drop']:.2f}",
        " / ".join(f"{chosen[f'mac_{kind}']:.1%}" for kind in ("zero", "v1", "v2", "exact")),
    )
    return f"| {' | '.join(cells)} |"


def table(folders: Sequence[str | os.PathLike]) -> str:
    """The whole table, runs in the order given."""
    return "\n".join([HEADER, *map(row, folders)])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    return exit_status(lambda: _print(list(sys.argv[1:] if argv is None else argv)))


def _print(folders: list[str]) -> None:
    if set(folders) & {"--help", "-h"}:
        print(f"{__doc__}\n\nIt takes the folders of finished runs, as search.run wrote them, and no options.")
        return
    if not folders:
        raise InputError("name the folders of one or more runs: python -m search.report results/reference/*")
    print(table(folders))
