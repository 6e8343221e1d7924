"""Asks a run's rows by SQL: DuckDB reads the Parquet parts, and of these only the columns that a question names."""

from __future__ import annotations

import datetime
import glob
import time
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
from fsspec.implementations.arrow import ArrowFSWrapper

from approx_env.errors import InputError
from search.results import store
from search.results.folder import Folder

# Scores that rows are sorted by, and which way the best one comes first. Equal configurations have equal scores.
DIRECTIONS = {"return": "desc", "accuracy": "desc", "soft_accuracy": "desc", "drop_points": "asc", "kd": "asc",
              "at": "asc", "mac_zero": "desc", "mac_exact": "asc", "mac_exact_all": "asc",
              "relative_energy": "asc"}  # fmt: skip
Row = dict[str, Any]


class Rows:
    """The rows of one run.

    Args:
        folder: the run's.
        about: its run.json, as `inspection.run_json` gives it.
    """

    def __init__(self, folder: Folder, about: Mapping[str, Any]):
        self._folder, self._about = folder, about
        self._connection = duckdb.connect(config={"autoinstall_known_extensions": False})  # no network
        scheme = ""
        if not folder.local:
            files = ArrowFSWrapper(folder.files)
            self._connection.register_filesystem(files)
            scheme = f"{files.fs.type_name}://"
        episodes = folder / store.EPISODES
        # A folder may be called as DuckDB's patterns are.
        self._parts = [f"{scheme}{glob.escape(f'{episodes.path}/{name}')}" for name in store.part_names(folder)]
        described = self.ask("select column_name from (describe from scored)")
        self.columns = frozenset(line["column_name"] for line in described)  # none, if there are no rows yet
        self._check()

    def top(self, count: int, sort: str = "return", columns: Sequence[str] = ()) -> list[Row]:
        """The best distinct configurations by a score, best first, as `selection.best` orders them.

        Only rows of the highest rung that was reached count, and none that exceeds the run's budget.

        Args:
            sort: one of `DIRECTIONS`.
            columns: of the rows that are given; all, if empty.

        Raises:
            InputError: the rows have no such column.
        """
        direction, score = DIRECTIONS[sort], _quoted(sort)
        counts = f"search_images = (select max(search_images) from scored) and {self._within_budget()}"
        # The window below would sort millions of rows by all their codes. So those go first that cannot be wanted.
        last = self.ask(
            f"select {'min' if direction == 'desc' else 'max'}(score) as score from (select distinct {score} as score "
            f"from scored where {counts} order by score {direction} limit {count})"
        )
        if not last or last[0]["score"] is None:
            return []
        codes = ", ".join(_quoted(f"{layer}_{name}") for layer in self._about["layers"] for name in store.CODE_FIELDS)
        return self.ask(
            f"select {', '.join(map(_quoted, columns)) or '*'} from scored "
            f"where {counts} and {score} {'>=' if direction == 'desc' else '<='} $last "
            f"qualify row_number() over (partition by {codes} order by seed, episode) = 1 "
            f"order by {score} {direction}, {codes} limit {count}",
            last=last[0]["score"],
        )

    def searches(self) -> list[Row]:
        """How many rows each search has, and its best return: on the highest rung of the run, within its budget."""
        best = f"search_images = (select max(search_images) from scored) and {self._within_budget()}"
        return self.ask(
            f'select trial, seed, count(distinct episode_id) as scored, max("return") filter ({best}) as best_return, '
            f'arg_max(drop_points, "return") filter ({best}) as best_drop_points, '
            "min(time) as first_time, max(time) as last_time from scored group by trial, seed order by seed, trial"
        )

    def each(self, columns: Sequence[str], order: str) -> list[Row]:
        """These columns of every row, once each, though two drivers may have written it.

        Args:
            order: columns to sort by, as SQL has them.
        """
        named = ", ".join(map(_quoted, columns))
        return self.ask(
            f"select {named} from scored qualify row_number() over (partition by episode_id) = 1 order by {order}"
        )

    def ask(self, question: str, **values: Any) -> list[Row]:
        """What DuckDB answers; `scored` is the table of rows, and `$name` stands for a value.

        Raises:
            InputError: a part cannot be read, or lacks a column.
        """
        if not self._parts:
            return []
        whole = f"with scored as (from read_parquet($parts, union_by_name = true)) {question}"
        for left in reversed(range(store.TORN_READS)):  # DuckDB opens a part twice, and a search replaces it meanwhile
            try:
                asked = self._connection.execute(whole, values | {"parts": self._parts})
                names = [column[0] for column in asked.description]
                return [dict(zip(names, map(_in_utc, line), strict=True)) for line in asked.fetchall()]
            except (duckdb.Error, OSError) as error:
                if not left or isinstance(error, duckdb.BinderException):
                    reason = str(error).strip().splitlines()[0]
                    raise InputError(
                        f"rows of {self._folder} cannot be read ({reason}): bring back what was there, or remove that "
                        "part, and search.run --resume searches again what it held"
                    ) from error
            time.sleep(store.TORN_SECONDS)

    def _within_budget(self) -> str:
        budget = self._about["arguments"].get("budget_exact")
        return "true" if budget is None else f"mac_exact_all <= {float(budget)!r}"

    def _check(self) -> None:
        """Raises InputError if there are another run's rows."""
        others = self.ask("select run from scored where run is distinct from $run limit 1", run=self._about["run"])
        if others:
            raise InputError(
                f"{self._folder}/{store.EPISODES} holds rows of run {others[0]['run']}, and run.json is of "
                f"{self._about['run']}: take that run's parts out"
            )


def _quoted(column: str) -> str:
    """A column's name as SQL has it: `return` is a word of its own there."""
    return '"' + column.replace('"', '""') + '"'


def _in_utc(value: Any) -> Any:
    """A cell; DuckDB gives times in this machine's zone."""
    return value.astimezone(datetime.UTC) if isinstance(value, datetime.datetime) else value
