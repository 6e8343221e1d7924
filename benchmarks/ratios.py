"""What the benchmarks must show: one number a claim, its target, and whether it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approx_env import markdown
from benchmarks import record
from search.results.folder import Folder

FILE = "ratios.json"


@dataclass(frozen=True)
class Target:
    """What a number must reach."""

    what: str
    bound: float
    at_most: bool  # whether the number must stay at or below the bound, not at or above it
    unit: str | None = None  # None: a ratio


TARGETS = {
    "episode_over_pass": Target(
        "one whole episode over one bare INT8 forward pass of the same images on the same engine", 1.0, True
    ),
    "episode_over_landed": Target(
        "one episode over one of the engine before its codes were exact (commit 6d5788c)", 1.05, True
    ),
    "episode_speedup_over_float_reference": Target(
        "a plain float32 student's episode, its teacher re-run, over ours", 30.0, False
    ),
    "pass_speedup_over_best_engine": Target(
        "the faster of ONNX Runtime's and OpenVINO's INT8 forward pass over ours, one thread, batch 256", 1.2, False
    ),
    "pass_speedup_over_best_engine_32": Target("the same at batch 32", 1.2, False),
    "pass_speedup_over_best_engine_1": Target("the same at batch 1", 1.0, False),
    "share_of_peak": Target(
        "multiply-accumulates a second of our pass over those of one large oneDNN INT8 convolution", 0.65, False
    ),
    "two_runners_over_one": Target("episodes a second of a whole PPO job, two env runners over one", 1.85, False),
    "orchestration_share": Target(
        "share of a PPO job's wall time outside the evaluator, 1,024 search images", 0.08, True
    ),
    "runner_memory_mb": Target("memory of an env runner above Ray's own", 300.0, True, "MB"),
}


def summarise(key: str, values: Sequence[float]) -> dict[str, Any]:
    """Median and range of a claim's repetitions, its target, and whether the median reaches it."""
    target, median = TARGETS[key], float(np.median(values))
    return {
        "what": target.what,
        "median": median,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "repetitions": len(values),
        "target": f"at {'most' if target.at_most else 'least'} {target.bound:g}",
        "holds": median <= target.bound if target.at_most else median >= target.bound,
        **({"unit": target.unit} if target.unit else {}),
        "machine": record.machine(),
        "versions": record.versions(),
    }


def write(folder: Path, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `folder/ratios.json`: claims by kind of CPU.

    What was not measured this time stays as it was, and so does what other kinds have shown.
    """
    path = folder / FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    merged = known.get(record.kind(), {}) | summaries
    here = {key: merged[key] for key in TARGETS if key in merged}
    Folder(folder).write_json(FILE, known | {record.kind(): here})


def table(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The claims as lines of Markdown, a column for each kind of CPU that they were measured on."""
    rows = []
    for key in (key for key in TARGETS if any(key in summaries for summaries in measured.values())):
        found = [summaries.get(key) for summaries in measured.values()]
        first = next(one for one in found if one)
        unit = f" {first['unit']}" if "unit" in first else ""
        rows.append((first["what"], key, f"{first['target']}{unit}", *(_cell(one, unit) for one in found)))
    return markdown.table(("what", "key", "target", *(f"CPU {kind}" for kind in measured)), rows)


def _cell(one: Mapping[str, Any] | None, unit: str) -> str:
    if one is None:
        return "not measured"
    holds = "holds" if one["holds"] else "missed"
    return f"{one['median']:.3g} ({one['min']:.3g} to {one['max']:.3g}){unit}, {holds}"
