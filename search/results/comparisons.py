"""What stands beside each run's configuration, in one Markdown table: baselines, and students."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from approx_env import markdown
from approx_env.scoring.distill import INTERVAL
from search.results import store
from search.results.folder import Folder

HEADS = (
    "network, sites", "approximation", "drop on validation, points", "drop on test, points",
    "of all multiplications: zero / shared / exact", "energy of all multiplications",
)  # fmt: skip
STUDENT = "student"  # what the one is called that lies in the run's own folder
NUMBERED = re.compile(r"(.+)-\d+")  # a student's folder: its name and its seed
Line = Mapping[str, float]  # 'validation_drop_points', 'test_drop_points', ..., 'mac_zero_all', ..., 'relative_energy'


def lines(folder: Folder, chosen: str) -> Iterator[tuple[str, list[Line]]]:
    """Each approximation of a finished run by name, and what it measured, once for each seed.

    Args:
        chosen: what the configuration that the run chose is called.

    Raises:
        OSError, ValueError: a file cannot be read.
    """
    compared = pq.read_table(pa.BufferReader(folder.read(store.BASELINES))).to_pylist()
    yield chosen, compared[:1]
    if len(compared) > 1 and "quintile" not in chosen:
        yield from ((line["baseline"], [line]) for line in compared[1:])
    students: dict[str, list[Line]] = {}
    for name, place in [(STUDENT, folder), *((name, folder / name) for name in folder.folders())]:
        if place.exists(store.STUDENT_SUMMARY):
            numbered = NUMBERED.fullmatch(name)
            students.setdefault(numbered[1] if numbered else name, []).append(_student(place))
    yield from students.items()


def _student(folder: Folder) -> Line:
    made: dict[str, Any] = folder.read_json(store.STUDENT_SUMMARY)
    validation, test = made["validation"][made["chosen"]], made["test"]
    drops = {f"{split}_{name}": scored[name] for split, scored in (("validation", validation), ("test", test))
             for name in store.MEASURES}  # fmt: skip
    return test | drops


def cells(name: str, measured: Sequence[Line]) -> tuple[str, ...]:
    """The cells behind the network's; means over seeds, and the range of drops on test."""
    mean = {key: sum(line[key] for line in measured) / len(measured) for key in measured[0]
            if isinstance(measured[0][key], float)}  # fmt: skip
    drops = [f"{mean[f'{split}_drop_points']:.2f} ± {INTERVAL * mean[f'{split}_drop_error_points']:.2f}"
             for split in store.SPLITS]  # fmt: skip
    if len(measured) > 1:
        tests = [line["test_drop_points"] for line in measured]
        name, drops[1] = f"{name}, {len(measured)} seeds", f"{drops[1]} ({min(tests):.2f} to {max(tests):.2f})"
    shares = " / ".join(f"{mean[f'mac_{kind}_all']:.1%}" for kind in ("zero", "shared", "exact"))
    return name, *drops, shares, f"{mean['relative_energy']:.3f}"


def table(runs: Sequence[tuple[str, str, Folder]]) -> str:
    """The whole table: of each run its network's name, what its configuration is called, and its folder."""
    rows = [(network, *cells(name, measured)) for network, chosen, folder in runs
            for name, measured in lines(folder, chosen)]  # fmt: skip
    return markdown.table(HEADS, rows)
