"""A run as a study of Optuna's, in a journal that `optuna-dashboard` and `optuna.load_study` open."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from approx_env.errors import InputError
from approx_env.tap import HIGHEST_CODE
from search import objectives
from search.objectives import OBJECTIVES
from search.results import store, summary
from search.results.folder import Folder
from search.results.query import Row
from search.space import OFFSETS

NAMES = ("trial", "seed", "episode", "episode_id", "search_images")
SCORES = ("accuracy", "soft_accuracy", "drop_points", "kd", "at", "mac_zero", "mac_v1", "mac_v2", "mac_exact",
          "mac_exact_all", "relative_energy")  # fmt: skip

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Journal(BaseJournalBackend):
    """Lines of a journal file in memory: Optuna's own backend brings each trial to the disk by itself."""

    def __init__(self):
        self.lines: list[dict[str, Any]] = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.lines += logs

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.lines[log_number_from:]


def export(place: str, output: str, *, force: bool = False) -> int:
    """Writes a run as the journal of a study, which has the run's name; returns the number of trials.

    A row is a trial; its parameters are the codes, as `<layer>_<code>`. Its value is the return; with
    `--objective pareto` the share of exact multiplications of all is a second one, to be minimised. Rows of the highest
    rung are complete. Those of lower ones are pruned, with the return as an intermediate value at their number of
    images. A trial above the run's budget violates the constraint 'budget'.

    Args:
        output: the file to make.
        force: whether a file that is there is replaced.

    Raises:
        InputError: the run cannot be read, or the file is there or cannot be written.
    """
    target = Path(os.path.abspath(output))
    if os.path.lexists(target) and not force:
        raise InputError(f"--output {output} is there: choose another file, or replace it by --force")
    folder, about, rows = summary.read(place)
    if not rows.columns:
        raise InputError(f"{folder} has no rows yet: export it when the search has scored something")
    space = _space(about)
    named = [name for name in (*NAMES, "time", "return", *SCORES) if name in rows.columns]
    objective = OBJECTIVES.get(about["arguments"].get("objective"))  # an older run has none
    front = objective is not None and objective.front
    scored = rows.each((*named, *space), "time, seed, episode, search_images")
    highest = max(row["search_images"] for row in scored)
    journal = _Journal()
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal),
        study_name=about["run"],
        directions=["maximize", "minimize"] if front else ["maximize"],
    )
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["return", "mac_exact_all"] if front else ["return"])
    study.set_user_attr("arguments", about["arguments"])
    budget = about["arguments"].get("budget_exact")
    study.add_trials([_trial(row, space, row["search_images"] == highest, front, budget) for row in scored])
    lines = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in journal.lines)
    try:
        Folder(target.parent).write(target.name, lines.encode())
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error}): choose another file") from error
    return len(scored)


def _space(about: Mapping[str, Any]) -> dict[str, IntDistribution]:
    """Codes by column, and between which bounds a search may choose them; tmax is one where it was searched."""
    searched = about["arguments"].get("search_tmax")
    names = store.CODE_FIELDS if searched else store.CODE_FIELDS[:-1]
    return {
        f"{layer}_{name}": IntDistribution(
            1 + offset, (HIGHEST_CODE if searched else said["tmax"]) - OFFSETS[-1] + offset
        )
        for layer, said in about["layers"].items()
        for name, offset in zip(names, OFFSETS, strict=False)
    }


def _trial(
    row: Row, space: Mapping[str, IntDistribution], complete: bool, front: bool, budget: float | None
) -> FrozenTrial:
    values: Sequence[float] = (row["return"], row["mac_exact_all"]) if front else (row["return"],)
    trial = create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        values=values if complete else None,
        params={name: row[name] for name in space},
        distributions=dict(space),
        user_attrs={name: row[name] for name in (*NAMES, *SCORES) if row.get(name) is not None},
        intermediate_values={} if front else {row["search_images"]: row["return"]},
        constraints=None if budget is None else {"budget": objectives.excess(row, budget)},
    )
    # A row knows when it was scored, not when that began. Optuna's times are local ones, without a zone.
    trial.datetime_start = trial.datetime_complete = row["time"].astimezone().replace(tzinfo=None)
    return trial
