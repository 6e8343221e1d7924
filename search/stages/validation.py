"""The end of a run: the best configurations on validation images, one of them on test, and the results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import ray
from rich import box
from rich.console import Console
from rich.table import Table

from approx_env.int8 import cost
from approx_env.scoring.evaluator import Evaluator, Score
from search.job import Job
from search.results import selection, store
from search.results.folder import as_json
from search.stages.trials import patiently
from search.workers.runners import Runners


def finish(job: Job, handle: ray.actor.ActorHandle) -> None:
    """Validates the best configurations, chooses one, reads test for it alone, and writes the results by the sink."""
    layers, settings = job.problem.network.layers, job.settings
    top = patiently(handle, handle.top.remote())
    configurations = [store.codes_of(row, layers) for row in top]
    validation = job.held_out["validation"]
    print(f"scoring the best {len(top)} on {len(validation.labels)} validation images", flush=True)
    with closing(Runners(validation, min(settings.runners, len(top)), settings.gpus)) as runners:
        scores = list(runners.evaluate(configurations))
        teacher_accuracy = runners.teacher_accuracy()
    accuracies = [score["accuracy"] for score in scores]
    drops = [score["drop_points"] for score in scores]
    rows = [
        dict(row, validation_accuracy=accuracy, validation_drop_points=drop)
        for row, accuracy, drop in zip(top, accuracies, drops, strict=True)
    ]
    position, within = selection.choose(accuracies, drops, settings.max_acc_drop)
    test_evaluator = Evaluator(job.held_out["test"])
    test = test_evaluator.evaluate(configurations[position])
    measured = {
        "validation": {"teacher": teacher_accuracy, "student": accuracies[position], "drop_points": drops[position]},
        "test": {"teacher": test_evaluator.teacher_accuracy, "student": test.accuracy, "drop_points": test.drop_points},
    }
    best = _best_json(job, top[position], measured, within, position)
    validated = store.parquet(rows, store.validated_schema(layers))
    patiently(handle, handle.write.remote({store.TOP: validated, store.BEST: as_json(best)}))
    _closing_table(job, best, test_evaluator.layers, test)


def _best_json(job: Job, row: dict, measured: dict, within: bool, rank: int) -> dict:
    layers = {
        layer: {f"{name}_code": row[f"{layer}_{name}"] for name in store.CODE_FIELDS}
        for layer in job.problem.network.layers
    }
    limit = job.settings.max_acc_drop
    return {
        "model": job.problem.network.model,
        "dataset": job.dataset.name,
        "layers": layers,
        "selection": {
            "rule": "highest validation accuracy " + (f"within a drop of {limit:g} points" if within else
                    f"of all: none lost at most {limit:g} points"),
            "within_max_acc_drop": within,
            "rank_by_return": rank + 1,
            "trial": row["trial"],
            "episode_id": row["episode_id"],
            "search_return": row["return"],
        },
        "metrics": {
            "acc_teacher": measured["test"]["teacher"],
            "acc_student": measured["test"]["student"],
            "acc_drop": measured["test"]["drop_points"],
            **measured,
            "share_of_all_macs": job.share_of_all_macs,
            "float_teacher": job.teacher.about["float_accuracy"],
        },
    }  # fmt: skip


def _closing_table(job: Job, best: dict, layers: Sequence[str], test: Score) -> None:
    """Prints what was chosen; `layers` are those of the score's shares."""
    metrics, about = best["metrics"], job.teacher.about
    table = Table("", "validation", "test", box=box.SIMPLE)
    splits = ("validation", "test")
    table.add_row("float teacher", *(f"{about['float_accuracy'][split]:.2%}" for split in splits))
    table.add_row("INT8 teacher", *(f"{metrics[split]['teacher']:.2%}" for split in splits))
    table.add_row("chosen configuration", *(f"{metrics[split]['student']:.2%}" for split in splits))
    table.add_row("drop, points", *(f"{metrics[split]['drop_points']:.2f}" for split in splits))
    console = Console(width=100, highlight=False)
    console.print(table)
    console.print(f"chosen: {best['selection']['rule']} (rank {best['selection']['rank_by_return']} by return)")
    costs = Table("multiplications by", *cost.KINDS, box=box.SIMPLE)
    for name, shares in zip((*layers, "all these layers"), (*test.layer_shares, test.shares), strict=True):
        costs.add_row(name, *(f"{share:.2%}" for share in shares))
    console.print(costs)
    print(f"results in {job.folder}")
