"""What a page is made of: a run's folder as it is now, whole or under way, of this version or an older one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from approx_env.errors import InputError
from approx_env.export import bundle
from search import objectives, sensitivity
from search.results import beside, inspection, store
from search.results.folder import Folder

COLUMNS = {
    store.HISTOGRAMS: store.HISTOGRAM_COLUMNS,
    sensitivity.FILE: sensitivity.COLUMNS,
    store.CLASSES: store.CLASS_COLUMNS,
    store.CHANGED: store.CHANGED_COLUMNS,
    store.ATTENTION: store.ATTENTION_COLUMNS,
}
TABLES = (store.TOP, store.PARETO, *COLUMNS)  # the first two are the run's own, and inspected with it
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """What a run's folder holds. What is not there is None, or empty."""

    folder: Folder
    about: Mapping[str, Any]  # run.json
    scored: pd.DataFrame  # every row; empty before the first
    best: Mapping[str, Any] | None  # best.json; None while the run is under way
    tables: Mapping[str, pd.DataFrame]  # of `TABLES` those that are there
    beside: Sequence[tuple[str, Rows]]  # baselines and students, as `beside.lines` has them
    student: Mapping[str, Any] | None  # finetune.json
    exports: Mapping[str, str]  # format by name of a folder below

    @property
    def name(self) -> str:
        """The run's."""
        return self.about["run"]

    @property
    def layers(self) -> list[str]:
        """Names of the approximated layers, in forward order."""
        return list(self.about["layers"])

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The settings by name; older runs lack some."""
        return self.about["arguments"]

    @property
    def method(self) -> str:
        """How it searched, as 'hill, kd'."""
        return objectives.method(self.arguments)

    @property
    def sites(self) -> str:
        """Network and dataset in words."""
        every = ", all sites" if self.arguments.get("sites") == "all" else ""
        return f"{self.arguments['model']}{every} on {self.about['dataset']}"

    @property
    def subject(self) -> tuple:
        """Drops compare between runs that have this in common."""
        return self.sites, self.about["teacher"].get("sha256")

    @property
    def problem(self) -> tuple:
        """Returns compare between runs that have this in common."""
        names = ("search_images", "objective", "accuracy", "kd_temperature", "kd_weight", "at_weight")
        return (*self.subject, *map(self.arguments.get, names))

    @property
    def searched(self) -> pd.DataFrame:
        """Rows on the images that the search itself scored on, without what exceeds the budget."""
        rows = self.scored
        if rows.empty:
            return rows
        rows = rows[rows["search_images"] == self.arguments["search_images"]]
        budget = self.arguments.get("budget_exact")
        return rows if budget is None else rows[rows["mac_exact_all"] <= budget]

    @property
    def chosen(self) -> pd.Series | None:
        """The row of the configuration that best.json names."""
        return None if self.best is None else inspection.chosen(self.best, self.scored)

    @property
    def quintile_return(self) -> float | None:
        """What quintile codes scored, if the search tried them."""
        rows = self.searched
        for layer, said in self.about["layers"].items():
            if rows.empty or "quintile" not in said:
                return None
            codes = rows[[f"{layer}_{name}" for name in store.CODE_FIELDS]].to_numpy()
            rows = rows[(codes == [*said["quintile"], said["tmax"]]).all(1)]
        return float(rows["return"].iloc[0]) if len(rows) else None

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written: it has chosen, and has made the student that it was asked for."""
        wanted = self.arguments.get("finetune_epochs") is not None
        return self.best is not None and (self.student is not None or not wanted)


def curves(run: Run) -> pd.DataFrame:
    """The best return so far after each evaluation, `(evaluations, seeds)`; not a number behind a search's end."""
    rows = run.searched
    if rows.empty:
        return pd.DataFrame()
    returns = rows.pivot(index="episode", columns="seed", values="return").sort_index()
    return returns.apply(lambda own: own.loc[: own.last_valid_index()].cummax().ffill())


def top(run: Run) -> pd.DataFrame:
    """The best configurations, best first; before a run has kept any, none."""
    return run.tables.get(store.TOP, pd.DataFrame())


def histogram(run: Run, layer: str) -> np.ndarray | None:
    """How often each code came at a layer, `(256,) int64`."""
    kept = run.tables.get(store.HISTOGRAMS)
    return None if kept is None else kept[kept["layer"] == layer].sort_values("code")["count"].to_numpy()


def read(folder: Folder) -> Run:
    """Reads a run.

    Raises:
        InputError: the folder holds no run, or files that are damaged or of another run.
    """
    try:
        about = inspection.run_json(folder)
        faults = inspection.faults(folder, about)
        if faults:
            name, reason = next(iter(faults.items()))
            raise ValueError(f"{name} is damaged or of another run ({reason})")
        scored = store.read(folder) if store.part_names(folder) else pd.DataFrame()
        best = inspection.best_json(folder, about) if folder.exists(store.BEST) else None
        if best is not None:
            inspection.chosen(best, scored)
            for check in (inspection.check_top, inspection.check_baselines, inspection.check_front):
                check(folder, about)
        tables = {name: _table(folder, name) for name in TABLES if folder.exists(name)}
        student = inspection.student_json(folder) if folder.exists(store.STUDENT_SUMMARY) else None
        compared = _compared(folder, about) if best is not None and folder.exists(store.BASELINES) else ()
        return Run(folder, about, scored, best, tables, compared, student, _exports(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no run that can be shown ({error}): name a folder that search.run wrote, or bring back "
            "what was there"
        ) from error


def _table(folder: Folder, name: str) -> pd.DataFrame:
    table = store.read_table(folder, name)
    if name in COLUMNS:
        inspection.check_table(table, COLUMNS[name], name)
    return table.to_pandas()


def _compared(folder: Folder, about: Mapping[str, Any]) -> Sequence[tuple[str, Rows]]:
    return list(beside.lines(folder, objectives.method(about["arguments"]), True))


def _exports(folder: Folder) -> dict[str, str]:
    """Folders below that `search.export` wrote, with their format."""
    found = {}
    for name in folder.folders():
        if (folder / name).exists(bundle.MANIFEST):
            found[name] = str((folder / name).read_json(bundle.MANIFEST).get("format"))
    return found
