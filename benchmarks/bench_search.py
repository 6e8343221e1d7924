"""Which algorithm finds the best configuration, at how many evaluations, and does that hold on other images?

Question: how high is the best return after so many evaluations, and after so many layer-forwards? What does the choice
that validation makes of the 30 best lose on test? Is an algorithm better than hill climbing, seed by seed?

Method: each algorithm searches with its default settings, from each seed, in this process, and all are scored by one
evaluator, whose cache serves those that change late layers alone. What starts Ray by itself (PPO) runs as a command.
Rows are deterministic: the load of the machine changes their seconds and nothing else. Searches go on from their rows:
a cut-off command, given again, does the rest, and one with more evaluations goes further. Test is read once for each
choice, and settings were not fixed by it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from approx_env import tap
from approx_env.errors import InputError, exit_status
from approx_env.int8.sites import CHOICES as SITES
from approx_env.scoring.configuration import Configuration, layer_forwards
from approx_env.scoring.evaluator import Evaluator, Score
from approx_env.teachers import models
from benchmarks import record, search_curves
from search import algorithms, config, job, objectives
from search.results import selection, store
from search.results.folder import Folder

ROWS, CHOICES = "search", "search-choices"  # Parquet files
PROBLEM = ["model", "sites", "teacher", "images"]
KEY = [*PROBLEM, "algorithm", "seed"]
TOP, WITHIN_POINTS = config.Settings.top, config.Settings.max_acc_drop
CHECKPOINTS = (64, 256, 1024)  # evaluations after which a choice is made, and at the end
ALL = algorithms.NAMES
DEFAULT = [name for name in ALL if name != "ppo"]  # it takes Ray, and begins anew with more evaluations
ROOT = Path(__file__).parents[1]
RESULTS, TEACHERS = Path(__file__).with_name("results"), ROOT / "results" / "teachers"
A_WRITE = 256  # evaluations between two writes


@dataclass(frozen=True)
class Search:
    """One search: a model's problem, an algorithm, a seed, and where its rows are."""

    prepared: job.Job
    algorithm: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What its rows have in common."""
        digest = self.prepared.teacher.about["sha256"][:12]
        images = len(self.prepared.problem.labels)
        model, sites = self.prepared.problem.network.model, self.prepared.settings.sites
        return dict(zip(KEY, (model, sites, digest, images, self.algorithm, self.seed), strict=True))

    def rows(self, evaluator: Evaluator, known: Sequence[dict], count: int) -> Iterator[dict]:
        """Rows of evaluations `len(known)` to `count - 1`; fewer if it has no more to propose.

        Raises:
            InputError: it proposes other codes than are known of it.
        """
        module = algorithms.find(self.algorithm)
        search = module.Search(self.prepared.problem.calibration, self.seed, search_options(module, self.prepared))
        done, before = 0, ()
        while done < count and (asked := search.ask(count - done)):
            scores = []
            for configuration in asked:
                row = known[done] if done < len(known) else None
                if row is None:
                    row = self._scored(evaluator, configuration, before, done)
                    yield row
                elif configuration_of(row) != configuration:
                    raise InputError(f"{self.key}: evaluation {done} has other codes in its row than are proposed now: "
                                     "remove its rows, they were made by other versions")  # fmt: skip
                scores.append(objectives.Score((row["return"],)))
                done, before = done + 1, configuration
            search.tell(asked, scores)

    def _scored(self, evaluator: Evaluator, configuration: Configuration, before: Configuration, number: int) -> dict:
        begin = time.perf_counter()
        score = evaluator.evaluate(configuration)
        seconds = time.perf_counter() - begin
        return self.key | {"evaluation": number} | measured(score) | {
            "return": score.return_, "layer_forwards": layer_forwards(configuration, before), "seconds": seconds,
            "codes": [code for codes in configuration for code in codes],
        }  # fmt: skip


def measured(score: Score) -> dict[str, float]:
    """What is kept of a score on any split."""
    return {"drop_points": score.drop_points, "kd": score.kd, "at": score.at, "mac_exact": float(score.shares[3])}


def configuration_of(row: dict) -> Configuration:
    """The configuration of a row, four codes a layer."""
    codes = [int(code) for code in row["codes"]]
    return tuple(tuple(codes[i : i + 4]) for i in range(0, len(codes), 4))


def search_options(module: Any, prepared: job.Job) -> Any:
    """An algorithm's options, at their defaults."""
    if not hasattr(module, "start"):
        return module.Options()
    return module.Options(start=module.start(prepared.problem, prepared.calibration_images()))


class Tables:
    """The rows there are, kept in Parquet files that are replaced whole.

    Args:
        names: of the files.
        columns: whose values are the key of a row.
        text: the benchmark's docstring, which each file keeps.
    """

    def __init__(self, folder: Path, names: Sequence[str], columns: Sequence[str], text: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._columns, self._text = Folder(folder), columns, text
        self._tables = {name: self._read(name) for name in names}

    def of(self, name: str, key: dict[str, Any]) -> list[dict]:
        """Rows with this key, in the order of their evaluations."""
        return self._tables[name].get(tuple(key.values()), [])

    def add(self, name: str, rows: Sequence[dict]) -> None:
        """Keeps rows and writes the file."""
        for row in rows:
            self._tables[name].setdefault(self._key(row), []).append(row)
        everything = [row for part in self._tables[name].values() for row in part]
        about = record.about(self._text)
        table = pa.Table.from_pylist(everything).replace_schema_metadata(about)
        self._folder.write(f"{name}.parquet", store.arrow_parquet(table))

    def replace(self, name: str, key: dict[str, Any], rows: Sequence[dict]) -> None:
        """Keeps rows in place of those with this key."""
        self._tables[name].pop(tuple(key.values()), None)
        self.add(name, rows)

    def frame(self, name: str) -> pd.DataFrame:
        """All rows of a file."""
        return pd.DataFrame([row for part in self._tables[name].values() for row in part])

    def _read(self, name: str) -> dict[tuple, list[dict]]:
        found: dict[tuple, list[dict]] = {}
        if self._folder.exists(f"{name}.parquet"):
            table = pq.read_table(pa.BufferReader(self._folder.read(f"{name}.parquet")))
            if missing := set(self._columns).difference(table.column_names):
                raise InputError(f"{self._folder / name}.parquet has no column {', '.join(sorted(missing))}: an older "
                                 "version made it; remove it")  # fmt: skip
            for row in table.to_pylist():
                found.setdefault(self._key(row), []).append(row)
        return found

    def _key(self, row: dict) -> tuple:
        return tuple(row[column] for column in self._columns)


def choose(rows: Sequence[dict], held_out: dict[str, Evaluator], known: dict[tuple, dict]) -> dict[str, Any]:
    """What validation chooses of the best of these rows, and what it loses there and on test.

    Args:
        known: scores on validation by codes, filled as they are made.
    """
    ranked = [row | {"episode": row["evaluation"]} for row in rows]
    top = selection.best(ranked, TOP, lambda row: tuple(row["codes"]))
    for row in top:
        if tuple(row["codes"]) not in known:
            score = held_out["validation"].evaluate(configuration_of(row))
            known[tuple(row["codes"])] = measured(score) | {"accuracy": score.accuracy}
    scores = [known[tuple(row["codes"])] for row in top]
    position, _ = selection.choose([s["accuracy"] for s in scores], [s["drop_points"] for s in scores], WITHIN_POINTS)
    test = held_out["test"].evaluate(configuration_of(top[position]))
    told = {"validation": scores[position], "test": measured(test), "search": top[position]}
    drops = {f"{split}_{name}": score[name] for split, score in told.items() for name in ("drop_points", "kd")}
    return drops | {"return": top[position]["return"], "codes": top[position]["codes"]}


def by_command(search: Search, count: int) -> list[dict]:
    """Rows of a search that starts Ray by itself, with one env runner."""
    own = search.prepared.settings
    given = {
        "model": own.model, "dataset": own.dataset, "data-dir": own.data_dir, "teacher": own.teacher,
        "sites": own.sites, "search-images": len(search.prepared.problem.labels), "algorithm": search.algorithm,
        "seeds": search.seed, "episodes": count, "num-env-runners": 1, "top": 1, "run-name": "r",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp") as folder:  # short: Ray's sockets lie below it
        flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
        command = [sys.executable, "-m", "search.run", *flags, f"--results={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": folder})
        rows = store.read(Path(folder) / "r").sort_values("episode").to_dict("records")
    times = [row["time"].timestamp() for row in rows]
    seconds = [0.0, *(after - before for before, after in pairwise(times))]
    kept = ("drop_points", "kd", "at", "mac_exact", "return", "layer_forwards")
    layers = search.prepared.problem.network.layers
    return [
        search.key | {"evaluation": row["episode"]} | {name: row[name] for name in kept}
        | {"seconds": taken, "codes": [row[f"{layer}_{name}"] for layer in layers for name in tap.CODES]}
        for row, taken in zip(rows, seconds, strict=True)
    ]  # fmt: skip


class Bench:
    """Runs what is asked for and not there yet."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._tables = Tables(arguments.results, (ROWS, CHOICES), KEY, __doc__)

    def run(self) -> None:
        """Every search of every model, seeds in the outer loop: what is cut off has something of every algorithm."""
        given = self._arguments
        for model in given.models:
            prepared = job.prepare(settings(model, given.images, given.data_dir, given.sites))
            bench = _Model(prepared, self._tables, given.evaluations)
            for seed in range(given.seeds):
                for algorithm in given.algorithms:
                    bench.advance(Search(prepared, algorithm, seed))

    def tell(self) -> None:
        """Prints the tables and draws the curves of all rows that there are, up to the number of evaluations."""
        rows, choices = self._tables.frame(ROWS), self._tables.frame(CHOICES)
        if rows.empty:
            raise InputError(f"{self._arguments.results} has no rows of searches: leave --draw out to make some")
        rows = rows[rows["evaluation"] < self._arguments.evaluations]
        if len(choices):
            choices = choices[choices["evaluations"] <= self._arguments.evaluations]
        for (model, sites, teacher, images), part in rows.groupby(PROBLEM):
            own = choices.merge(part[PROBLEM].drop_duplicates()) if len(choices) else choices
            told = f"{model}, {sites} sites (teacher {teacher}), {images} search images"
            print(f"\n{told}\n\n{search_curves.table(part, own)}", flush=True)
            search_curves.draw(part, own, self._arguments.results / f"search-{model}-{sites}-{teacher}-{images}.svg")


class _Model:
    """Evaluators of one model, made when they are needed."""

    def __init__(self, prepared: job.Job, tables: Tables, evaluations: int):
        self._prepared, self._tables, self._evaluations = prepared, tables, evaluations

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._prepared.problem)

    @cached_property
    def _held_out(self) -> dict[str, Evaluator]:
        return {split: Evaluator(problem, cache_bytes=0) for split, problem in self._prepared.held_out.items()}

    def advance(self, search: Search) -> None:
        """Takes a search to its number of evaluations, and makes its choices."""
        known, begin = self._tables.of(ROWS, search.key), time.monotonic()
        if len(known) < self._evaluations and not self._ended(search, known):
            self._search(search, known)
        rows = self._tables.of(ROWS, search.key)[: self._evaluations]
        made = {row["evaluations"] for row in self._tables.of(CHOICES, search.key)}
        scored: dict[tuple, dict] = {}
        for count in sorted({*(c for c in CHECKPOINTS if c < len(rows)), len(rows)} - made):
            choice = choose(rows[:count], self._held_out, scored)
            self._tables.add(CHOICES, [search.key | {"evaluations": count} | choice])
        print(f"{search.key}: {len(rows)} evaluations, best return {max(row['return'] for row in rows):.4f}, "
              f"{time.monotonic() - begin:.0f} s", flush=True)  # fmt: skip

    def _search(self, search: Search, known: list[dict]) -> None:
        module = algorithms.find(search.algorithm)
        if hasattr(module, "trial"):
            self._tables.replace(ROWS, search.key, by_command(search, self._evaluations))
            return
        fresh: list[dict] = []
        for row in search.rows(self._evaluator, list(known), self._evaluations):
            fresh.append(row)
            if len(fresh) == A_WRITE:
                self._tables.add(ROWS, fresh)
                fresh = []
        if fresh:
            self._tables.add(ROWS, fresh)

    @staticmethod
    def _ended(search: Search, known: list[dict]) -> bool:
        """Whether it has nothing left to propose."""
        return algorithms.is_fixed(search.algorithm) and len(known) > 0


def settings(model: str, images: int, data_dir: Path | None, sites: str = SITES[0]) -> config.Settings:
    """Those of a search of this model."""
    given = [f"--model={model}", f"--search-images={images}", f"--sites={sites}"]
    if data_dir is not None:
        teacher = TEACHERS / f"{model}-imagefolder-{data_dir.name}.int8.json"
        given += ["--dataset=imagefolder", f"--data-dir={data_dir}", f"--teacher={teacher}"]
    return config.parse(given)


def _listed(text: str) -> list[str]:
    return text.split(",")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ends with status 2 if it is wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks search", description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", type=_listed, default=DEFAULT, metavar="LIST", help=f"of {', '.join(ALL)}")
    parser.add_argument("--evaluations", type=int, default=1024, metavar="N", help="of each search")
    parser.add_argument("--images", type=int, default=1024, metavar="N", help="search images")
    parser.add_argument("--sites", choices=SITES, default=SITES[0], help="what is approximated (default: %(default)s)")
    add_arguments(parser)
    return checked(parser, argv, ("seeds", "evaluations", "images"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the benchmarks of searches have in common."""
    parser.add_argument("--models", type=_listed, default=["alexnet", "squeezenet"], metavar="LIST")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="image folder (default: the bundled digits)")
    parser.add_argument("--draw", action="store_true", help="tables and curves of the rows that are there; no search")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where rows are and go")


def checked(parser: argparse.ArgumentParser, argv: Sequence[str], counts: Sequence[str]) -> argparse.Namespace:
    """What the command line says; ends with status 2 if a name is unknown, or one of `counts` below 1."""
    arguments = parser.parse_args(argv)
    for name, known in (("algorithms", ALL), ("models", tuple(models.MODELS))):
        if strange := set(getattr(arguments, name, ())) - set(known):
            parser.error(f"--{name}: there is no {', '.join(sorted(strange))}: choose from {', '.join(known)}")
    for name in counts:
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return arguments


def carried_out(
    argv: Sequence[str],
    parse: Callable[[Sequence[str]], argparse.Namespace],
    table: tuple[Sequence[str], Sequence[str], str],
    work: Callable[[argparse.Namespace, Tables], None],
    tell: Callable[[Tables], None],
) -> int:
    """Does the work, and tells; with --draw it tells alone. Returns the exit status.

    Args:
        table: what `Tables` takes beside the folder.
    """

    def run() -> None:
        arguments = parse(argv)
        torch.set_num_threads(1)
        tables = Tables(arguments.results, *table)
        if not arguments.draw:
            work(arguments, tables)
        tell(tables)

    return exit_status(run)


def main(argv: Sequence[str]) -> int:
    """Searches what is asked for, then tells; returns the exit status."""

    def run() -> None:
        arguments = parse(argv)
        torch.set_num_threads(1)
        bench = Bench(arguments)
        if not arguments.draw:
            bench.run()
        bench.tell()

    return exit_status(run)
