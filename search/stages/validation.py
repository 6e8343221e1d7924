"""The end of a run: the best configurations on validation images, one of them on test, and the results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import ray
from rich import box
from rich.console import Console
from rich.table import Table

from approx_env.env import measured
from approx_env.int8 import cost
from approx_env.int8.energy import SCOPE
from approx_env.scoring.evaluator import Evaluator, Score
from search.job import Job
from search.results import selection, store
from search.results.folder import as_json
from search.stages import comparison
from search.stages.trials import patiently
from search.workers.runners import Runners


def finish(job: Job, handle: ray.actor.ActorHandle) -> None:
    """Validates the best configurations, chooses one, and writes the results by the sink.

    Test is read for the chosen one alone, and for the baselines that are shown beside it.
    """
    layers, settings, calibration = job.problem.network.layers, job.settings, job.problem.calibration
    top = patiently(handle, handle.top.remote())
    configurations = [store.codes_of(row, layers) for row in top]
    validation = job.held_out["validation"]
    print(f"scoring the best {len(top)} on {len(validation.labels)} validation images", flush=True)
    with closing(Runners(validation, min(settings.runners, len(top)), settings.gpus)) as runners:
        scores = list(runners.evaluate(configurations))
        teacher_accuracy = runners.teacher_accuracy()
        accuracies = [score["accuracy"] for score in scores]
        drops = [score["drop_points"] for score in scores]
        position, within = selection.choose(accuracies, drops, settings.max_acc_drop)
        found = comparison.find(runners, calibration, configurations[position], scores[position])
    rows = [
        dict(row, validation_accuracy=accuracy, validation_drop_points=drop)
        for row, accuracy, drop in zip(top, accuracies, drops, strict=True)
    ]
    test_evaluator = Evaluator(job.held_out["test"])
    test = test_evaluator.evaluate(configurations[position])
    chosen = (calibration.tmax, scores[position], measured(test))
    compared = comparison.rows(found, chosen, test_evaluator, job.problem.energy)
    teachers = {"validation": teacher_accuracy, "test": test_evaluator.teacher_accuracy}
    best = _best_json(job, top[position], teachers, compared, within, position)
    files = {
        store.TOP: store.parquet(rows, store.validated_schema(layers)),
        store.BASELINES: comparison.parquet(compared, job.name, best["model"], best["dataset"], layers),
        store.BEST: as_json(best),  # last: with it the run is finished
    }
    patiently(handle, handle.write.remote(files))
    _closing_table(job, best, test_evaluator.layers, test)
    comparison.show(compared, job.problem.energy)
    print(f"results in {job.folder}")


def _best_json(job: Job, row: dict, teachers: dict, compared: list[dict], within: bool, rank: int) -> dict:
    chosen = compared[0]
    measures = {
        split: {
            "teacher": teacher,
            "student": chosen[f"{split}_accuracy"],
            "drop_points": chosen[f"{split}_drop_points"],
            "drop_error_points": chosen[f"{split}_drop_error_points"],
        }
        for split, teacher in teachers.items()
    }
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
            "acc_teacher": measures["test"]["teacher"],
            "acc_student": measures["test"]["student"],
            "acc_drop": measures["test"]["drop_points"],
            **measures,
            "share_of_all_macs": job.share_of_all_macs,
            "float_teacher": job.teacher.about["float_accuracy"],
            "cost": {"table": chosen["energy_table"], "scope": SCOPE}
            | {name: value for name, value in chosen.items() if name.startswith(("mac_", "relative_"))},
            "baselines": [comparison.measures(row) for row in compared[1:]],
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
    costs = Table("multiplications by", *cost.KINDS, "zero in the exact network", box=box.SIMPLE)
    told = [*zip(layers, test.layer_shares, test.layer_zero_natural, strict=True)]
    for name, shares, natural in [*told, ("all these layers", test.shares, test.zero_natural)]:
        costs.add_row(name, *(f"{share:.2%}" for share in (*shares, natural)))
    console.print(costs)
