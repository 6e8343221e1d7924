"""What there is to know of a run at a glance: of one that has ended, is at work or was cut off, or is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from approx_env.errors import InputError
from search.results import inspection, lease, store
from search.results.folder import Folder
from search.results.query import Rows

FINISHED, AT_WORK, CUT_OFF, DAMAGED = "finished", "at work", "cut off", "damaged"
# Columns of `list`, and whether the largest comes first where runs are sorted by it.
COLUMNS = {"run": False, "folder": False, "model": False, "dataset": False, "algorithm": False, "objective": False,
           "sites": False, "seeds": True, "episodes": True, "search_images": True, "scored": True,
           "best_return": True, "best_drop_points": False, "validation_drop_points": False,
           "test_drop_points": False, "relative_energy": False, "started": True, "state": False}  # fmt: skip
# Options that say where a run was made and what it printed, not what it looks for.
PLACES = ("results", "run_name", "resume", "address", "num_env_runners", "threads_per_runner", "gpus_per_runner",
          "quiet", "json")  # fmt: skip
Summary = dict[str, Any]


def summaries(place: str) -> Iterator[Summary]:
    """A summary of each run below a place; of a damaged one its `folder`, and its `state` says what is wrong.

    A folder without run.json is no run, and is passed over.

    Raises:
        InputError: the place cannot be read.
    """
    results = Folder(place)
    try:
        names = results.folders() if results.exists() else None
    except OSError as error:
        raise InputError(f"--results {place} cannot be read ({error}): name a folder that holds runs") from error
    if names is None:
        raise InputError(f"--results {place} is not there: name a folder that holds runs")
    for name in names:
        folder = results / name
        try:
            if folder.exists(store.RUN):
                yield summary(folder)
        except (InputError, OSError) as error:
            yield dict.fromkeys(COLUMNS) | {"run": name, "folder": str(folder), "state": f"{DAMAGED}: {error}"}


def read(place: str | Folder) -> tuple[Folder, dict[str, Any], Rows]:
    """The folder of a run, its run.json, and its rows.

    Raises:
        InputError: there is no run, or it is damaged.
    """
    folder = Folder(place) if isinstance(place, str) else place
    try:
        about = inspection.run_json(folder)
        return folder, about, Rows(folder, about)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no run ({error}): name a folder that search.run wrote") from error


def summary(place: str | Folder) -> Summary:
    """A run in the columns of `COLUMNS`.

    Raises:
        InputError: there is no run, or it is damaged.
    """
    folder, about, rows = read(place)
    return _summary(folder, about, rows, best_json(folder, about))


def _summary(folder: Folder, about: Mapping[str, Any], rows: Rows, best: Mapping[str, Any] | None) -> Summary:
    arguments = about["arguments"]
    (counted,) = rows.ask("select count(distinct episode_id) as scored, max(search_images) as images from scored") or [
        {"scored": 0, "images": None}
    ]
    top = rows.top(1, columns=("return", "drop_points"))
    metrics = best["metrics"] if best else {}
    return {
        "run": about["run"],
        "folder": str(folder),
        "model": arguments["model"],
        "dataset": about["dataset"],
        "algorithm": arguments["algorithm"],
        "objective": str(arguments.get("objective", "return")),
        "sites": str(arguments.get("sites", "standard")),
        "seeds": len(arguments["seeds"]),
        "episodes": arguments["episodes"],
        "search_images": counted["images"],
        "scored": counted["scored"],
        "best_return": top[0]["return"] if top else None,
        "best_drop_points": top[0]["drop_points"] if top else None,
        "validation_drop_points": metrics["validation"]["drop_points"] if best else None,
        "test_drop_points": metrics["acc_drop"] if best else None,
        "relative_energy": metrics["cost"]["relative_energy"] if "cost" in metrics else None,
        "started": str(about["started"]) if "started" in about else None,
        "state": FINISHED if best else AT_WORK if _held(folder) else CUT_OFF,
    }


def _held(folder: Folder) -> bool:
    try:
        return lease.held(folder)
    except OSError as error:
        raise InputError(
            f"{folder}/{lease.FILE} cannot be read ({error}): remove it if no driver writes the run"
        ) from error


def best_json(folder: Folder, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What best.json says; None if the run has none yet.

    Raises:
        InputError: it is damaged.
    """
    try:
        return inspection.best_json(folder, about) if folder.exists(store.BEST) else None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}/{store.BEST} cannot be read ({error}): remove it, and search.run --resume makes it again"
        ) from error


def details(place: str) -> dict[str, Any]:
    """A run's summary with its `searches`, `chosen` codes by layer, how they were chosen, and `arguments`.

    Raises:
        InputError: there is no run, or it is damaged.
    """
    folder, about, rows = read(place)
    best = best_json(folder, about)
    return _summary(folder, about, rows, best) | {
        "selection": best["selection"] if best else None,
        "chosen": best["layers"] if best else None,
        "searches": rows.searches(),
        "arguments": about["arguments"],
        "teacher": about["teacher"].get("file"),
        "commit": about.get("commit"),
    }


def compared(places: Sequence[str]) -> list[dict[str, Any]]:
    """The summaries of runs, each with the `arguments` in which they differ; None where a run has no such option.

    Raises:
        InputError: one of them is no run, or is damaged.
    """
    found = [read(place) for place in places]
    arguments = [about["arguments"] for _, about, _ in found]
    names = dict.fromkeys(name for each in arguments for name in each if name not in PLACES)
    differing = [name for name in names if any(each.get(name) != arguments[0].get(name) for each in arguments)]
    return [
        _summary(folder, about, rows, best_json(folder, about))
        | {"arguments": {name: about["arguments"].get(name) for name in differing}}
        for folder, about, rows in found
    ]
