"""What stands beside a run's configuration, as lines of a table: baselines, and students with weights of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from approx_env.scoring.distill import with_interval
from search.results import store
from search.results.folder import Folder

HEADS = (
    "network, sites", "approximation", "drop on validation, points", "drop on test, points",
    "of all multiplications: zero / shared / exact", "energy of all multiplications",
)  # fmt: skip
STUDENT = "student"  # what the one is called that lies in the run's own folder
NUMBERED = re.compile(r"(.+)-\d+")  # a folder of a student that was made once for each seed: NAME-SEED
Line = Mapping[str, float]  # 'validation_drop_points', 'test_drop_points', ..., 'mac_zero_all', ..., 'relative_energy'


def lines(folder: Folder, chosen: str, baselines: bool) -> Iterator[tuple[str, list[Line]]]:
    """Each approximation of a finished run by name, and what it measured, once for each seed.

    Args:
        chosen: what the configuration that the run chose is called.
        baselines: whether its baselines are told, too.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file cannot be read.
    """
    compared = pq.read_table(pa.BufferReader(folder.read(store.BASELINES))).to_pylist()
    by_name = {line["baseline"]: line for line in compared}
    yield chosen, [by_name.pop(store.CHOSEN)]
    if baselines:
        yield from ((name, [line]) for name, line in by_name.items())
    if folder.exists(store.STUDENT_SUMMARY):
        yield STUDENT, [_line(folder.read_json(store.STUDENT_SUMMARY))]
    yield from _students(folder)


def _students(folder: Folder) -> Iterator[tuple[str, list[Line]]]:
    """Those in the folders below; seeds of one recipe together."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for name in folder.folders():
        if (folder / name).exists(store.STUDENT_SUMMARY):
            summary = (folder / name).read_json(store.STUDENT_SUMMARY)
            numbered = NUMBERED.fullmatch(name)
            others = found.setdefault(numbered[1] if numbered else name, {})
            seed = summary["recipe"]["seed"]
            if seed in others or any(_method(summary) != _method(other) for other in others.values()):
                raise ValueError(f"{name} is no other seed of what lies beside it")
            others[seed] = summary
    for name, seeds in found.items():
        yield name, [_line(summary) for summary in seeds.values()]


def _method(summary: Mapping[str, Any]) -> tuple:
    """How a student was made, but for the seed. A switch that an older recipe lacks is off."""
    recipe = summary["recipe"].items()
    return summary["correction"], {name: value for name, value in recipe if name != "seed" and value is not False}


def _line(summary: Mapping[str, Any]) -> Line:
    validation, test = summary["validation"][summary["chosen"]], summary["test"]
    drops = {f"{split}_{name}": scored[name] for split, scored in (("validation", validation), ("test", test))
             for name in store.MEASURES}  # fmt: skip
    return test | drops


def cells(name: str, measured: Sequence[Line]) -> tuple[str, ...]:
    """The cells behind the network's; means over seeds, and the range of drops on test."""
    mean = {key: sum(line[key] for line in measured) / len(measured) for key in measured[0]
            if isinstance(measured[0][key], float)}  # fmt: skip
    drops = [with_interval(mean[f"{split}_drop_points"], mean[f"{split}_drop_error_points"]) for split in store.SPLITS]
    if len(measured) > 1:
        tests = [line["test_drop_points"] for line in measured]
        name, drops[1] = f"{name}, {len(measured)} seeds", f"{drops[1]} ({min(tests):.2f} to {max(tests):.2f})"
    shares = " / ".join(f"{mean[f'mac_{kind}_all']:.1%}" for kind in ("zero", "shared", "exact"))
    return name, *drops, shares, f"{mean['relative_energy']:.3f}"
