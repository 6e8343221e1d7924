"""What each layer alone costs, at quintile codes: `python -m search.sensitivity --help`.

Each layer is scored twice on the search images: approximated while all others stay exact, and exact while all others
are approximated. One row more is of all layers: all of them approximated, and none. It takes one process and no Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from approx_env.errors import InputError, exit_status, run_module
from search.workers import processes

if __name__ == "__main__":  # before the rest is loaded
    processes.prepare()
    sys.exit(run_module("search.sensitivity"))

import pyarrow as pa
import torch

from approx_env import markdown
from approx_env.env import measured
from approx_env.int8 import cost
from approx_env.int8.cost import KINDS
from approx_env.scoring.calibration import Layer
from approx_env.scoring.evaluator import Evaluator, Problem, Score
from search import config
from search.job import Job, note_on_images, prepare
from search.results import store

FILE = "sensitivity.parquet"
ALL = "all layers"
SETTINGS = ("approximated", "exact")  # what the row's layer alone is
CACHE_BYTES = 2**30  # two configurations that follow each other part at a late layer
OPTIONS = (
    "model", "weights", "dataset", "data_dir", "teacher", "sites", "search_images", "calib_batches", "calib_batch_size",
    "accuracy", "kd_temperature", "kd_weight", "at_weight", "tmax_percentile", "tmax_offset", "engine", "device",
    "results", "run_name",
)  # fmt: skip
SCORES = ("accuracy", "soft_accuracy", "drop_points", "kd", "at", "return")
COLUMNS = pa.schema(
    [
        ("schema_version", pa.int16()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("teacher", pa.string()),  # SHA-256 of its arrays
        ("sites", pa.string()),
        ("search_images", pa.int64()),
        ("layer", pa.string()),
        ("setting", pa.string()),
        *((name, pa.int16()) for name in store.CODE_FIELDS),
        ("share_of_layers_macs", pa.float64()),  # of the multiplications that read some layer: which read this one
        ("share_of_all_macs", pa.float64()),
        *((name, pa.float64()) for name in SCORES),
        *((f"mac_{kind}", pa.float64()) for kind in KINDS),  # of the multiplications that read some layer
        *((f"all_mac_{kind}", pa.float64()) for kind in KINDS),
    ]
)
HEADS = (
    "layer", "feeds, of these / of all multiplications",
    *(f"{when}: {name}" for when in ("alone approximated", "alone exact")
      for name in ("drop, points", "KD", "AT", "exact, of these / of all")),
)  # fmt: skip


def measure(problem: Problem) -> list[dict[str, Any]]:
    """Scores each layer in both settings, and all layers in the last two rows.

    A product with an exact code counts as zero where the code is 0 anyway.

    Returns:
        Rows with the columns `layer` to `all_mac_exact` of `COLUMNS`.
    """
    scorer = Evaluator(problem, CACHE_BYTES)
    layers = problem.calibration.layers
    reads, everything = cost.fed(scorer.network, scorer.readers), cost.total(scorer.network)
    covered = sum(reads.values())
    rows = []
    for setting in SETTINGS:
        for name in (*scorer.layers, ALL):
            alone = [name in (layer.name, ALL) for layer in layers]
            approximated = alone if setting == "approximated" else [not each for each in alone]
            score = scorer.evaluate(
                [layer.quintile if chosen else None for layer, chosen in zip(layers, approximated, strict=True)]
            )
            outcome, fed = measured(score), reads.get(name, covered)
            rows.append(
                {"layer": name, "setting": setting, **_codes(layers, name)}
                | {"share_of_layers_macs": fed / max(1, covered), "share_of_all_macs": fed / everything}
                | {each: outcome[each] for each in SCORES}
                | _shares(score)
            )
    return rows


def _codes(layers: Sequence[Layer], name: str) -> dict[str, int]:
    """Quintile codes and tmax of a layer; nothing for all of them."""
    found = [(*layer.quintile, layer.tmax) for layer in layers if layer.name == name]
    return dict(zip(store.CODE_FIELDS, *found, strict=True)) if found else {}


def _shares(score: Score) -> dict[str, float]:
    """Shares of the multiplications that read some layer, and of all."""
    return {
        f"{prefix}mac_{kind}": float(share)
        for prefix, each in (("", score.shares), ("all_", cost.of_all(score.shares, score.covered)))
        for kind, share in zip(KINDS, each, strict=True)
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What `measure` found, a line for each layer and one for all, in Markdown."""
    by_setting = {setting: {row["layer"]: row for row in rows if row["setting"] == setting} for setting in SETTINGS}
    lines = []
    for name, row in by_setting["approximated"].items():
        lines.append([name, f"{row['share_of_layers_macs']:.1%} / {row['share_of_all_macs']:.1%}"])
        for setting in SETTINGS:
            scored = by_setting[setting][name]
            lines[-1] += [f"{scored['drop_points']:.2f}", f"{scored['kd']:.4f}", f"{scored['at']:.4f}",
                          f"{scored['mac_exact']:.1%} / {scored['all_mac_exact']:.1%}"]  # fmt: skip
    return markdown.table(HEADS, lines)


def parquet(job: Job, rows: Sequence[dict[str, Any]]) -> bytes:
    """What `measure` found as a file."""
    about = {
        "schema_version": store.SCHEMA_VERSION,
        "model": job.problem.network.model,
        "dataset": job.dataset.name,
        "teacher": job.teacher.about["sha256"],
        "sites": job.settings.sites,
        "search_images": len(job.problem.labels),
    }
    return store.parquet([about | row for row in rows], COLUMNS)


def _run(argv: list[str] | None) -> None:
    processes.prepare()
    torch.set_num_threads(1)
    settings = config.parse(argv, "search.sensitivity", "Measures what each layer of an INT8 CNN alone costs.", OPTIONS)
    job = prepare(settings, held_out_splits=(), what="sensitivity")
    network = job.problem.network
    if note := note_on_images(job.teacher, job.dataset):
        print(f"note: {note}")
    print(f"{network.model}: {len(network.layers)} layers, which feed {job.share_of_all_macs:.1%} of all "
          f"multiplications; quintile codes on {len(job.problem.labels)} search images\n", flush=True)  # fmt: skip
    rows = measure(job.problem)
    print(table(rows))
    try:
        job.folder.create()
        job.folder.write(FILE, parquet(job, rows))
    except OSError as error:
        raise InputError(f"--results {settings.results} cannot be written ({error}): choose another") from error
    print(f"\nresults in {job.folder}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
