"""The end of a run: the best configurations on validation images, one of them on test, and the results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import ray
from rich import box
from rich.console import Console
from rich.table import Table

from approx_env.env import measured
from approx_env.errors import InputError
from approx_env.int8 import cost
from approx_env.int8.energy import SCOPE
from approx_env.scoring.baselines import Baseline
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.distill import class_changes
from approx_env.scoring.evaluator import Evaluator, Score
from search import telling
from search.config import Settings
from search.job import Job
from search.objectives import OBJECTIVES, excess
from search.results import selection, store
from search.results.folder import as_json
from search.stages import attention, changes, comparison, front
from search.stages.comparison import Outcome
from search.stages.trials import patiently
from search.workers.runners import Runners


@dataclass(frozen=True)
class _Validated:
    """What the best configurations are worth on validation images."""

    scores: list[Outcome]
    teacher_accuracy: float
    allowed: list[int]  # positions of those that keep the budget
    position: int  # of the chosen one
    within: bool  # whether its drop is small enough
    baselines: list[tuple[Baseline, Outcome]]  # to compare it with


def finish(job: Job, handle: ray.actor.ActorHandle) -> None:
    """Validates the best configurations, chooses one, and writes the results by the sink.

    Test is read for the chosen one alone, and for the baselines that are shown beside it; of a front for each of its
    points, once.

    Raises:
        InputError: no configuration keeps the budget of exact multiplications.
    """
    layers, energy = job.problem.network.layers, job.problem.energy
    top = patiently(handle, handle.top.remote())
    _check_some(job.settings, "search", top)
    configurations = [store.codes_of(row, layers) for row in top]
    validated = _validate(job, configurations)
    position = validated.position
    test_evaluator = Evaluator(job.held_out["test"])
    taken = test_evaluator.taken(configurations[position])
    test, (logits,) = taken.scores[0], taken.logits()
    classes = class_changes(logits, test_evaluator.teacher_logits, test_evaluator.labels, job.problem.network.classes)
    chosen = ([codes[-1] for codes in configurations[position]], validated.scores[position], measured(test))
    compared = comparison.rows(validated.baselines, chosen, test_evaluator, energy)
    points = _front(job, top, validated, measured(test))
    teachers = {"validation": validated.teacher_accuracy, "test": test_evaluator.teacher_accuracy}
    best = _best_json(job, top[position], teachers, compared, validated.within, position)
    files = {
        store.TOP: store.parquet(_rows(top, validated.scores), store.validated_schema(layers)),
        store.BASELINES: comparison.parquet(compared, job.name, best["model"], best["dataset"], layers),
        store.CLASSES: store.parquet(classes, store.CLASS_COLUMNS),
        store.CHANGED: changes.parquet(job.held_out["validation"], configurations[position]),
        store.ATTENTION: attention.parquet(test_evaluator.engine, job.held_out["validation"], configurations[position]),
        **({store.PARETO: front.parquet(points, layers)} if points else {}),
        store.BEST: as_json(best),  # last: with it the run is finished
    }
    patiently(handle, handle.write.remote(files))
    _closing_table(job, best, top[position], test_evaluator.layers, test)
    comparison.show(compared, energy)
    if points:
        front.show(points)
    print(f"results in {job.folder}")


def _validate(job: Job, configurations: Sequence[Configuration]) -> _Validated:
    """Scores configurations on validation images and chooses one."""
    settings, images = job.settings, job.held_out["validation"]
    count = len(configurations)
    print(f"scoring the best {count} on {len(images.labels)} validation images", flush=True)
    telling.event("phase", phase="validation", images=len(images.labels), total=count)
    with closing(Runners(images, min(settings.runners, count), settings.needs)) as runners:
        scores = list(runners.evaluate(configurations))
        allowed = [k for k, score in enumerate(scores) if not excess(score, settings.budget_exact)]
        _check_some(settings, "validation", allowed)
        position, within = _choose(settings, scores, allowed)
        baselines = comparison.find(runners, job.problem.calibration, configurations[position], scores[position])
        return _Validated(scores, runners.teacher_accuracy(), allowed, position, within, baselines)


def _check_some(settings: Settings, split: str, left: Sequence) -> None:
    """Raises InputError if no configuration keeps the budget."""
    if not left:
        raise InputError(
            f"no configuration keeps --budget-exact {settings.budget_exact:g} on the {split} images, so that none is "
            "chosen; all rows are kept: start a run with a higher budget, more episodes or --search-tmax"
        )


def _choose(settings: Settings, scores: Sequence[Outcome], allowed: Sequence[int]) -> tuple[int, bool]:
    """Position of the chosen configuration among those that keep the budget, and whether its drop is small enough."""
    accuracies, drops, shares = (
        [scores[k][name] for k in allowed] for name in ("accuracy", "drop_points", "mac_exact_all")
    )
    few = shares if OBJECTIVES[settings.objective].front else None
    place, within = selection.choose(accuracies, drops, settings.max_acc_drop, few)
    return allowed[place], within


def _rows(top: Sequence[dict], scores: Sequence[Outcome]) -> list[dict]:
    """The rows of the best configurations, with what they scored on validation."""
    names = ("accuracy", "drop_points", "mac_exact_all")
    return [
        row | {f"validation_{name}": float(score[name]) for name in names}
        for row, score in zip(top, scores, strict=True)
    ]


def _front(job: Job, top: Sequence[dict], validated: _Validated, test: Outcome) -> list[dict]:
    """Rows of the front, if the run's objective is one; reads test for its points, but not again for the chosen one."""
    settings, scores, position = job.settings, validated.scores, validated.position
    if not OBJECTIVES[settings.objective].front:
        return []
    places = [validated.allowed[k] for k in front.members([scores[k] for k in validated.allowed])]
    others = [k for k in places if k != position]
    images = job.held_out["test"]
    print(f"scoring {len(places)} configurations of the front on {len(images.labels)} test images", flush=True)
    tests = {position: test}
    if others:
        with closing(Runners(images, min(settings.runners, len(others)), settings.needs)) as runners:
            configurations = [store.codes_of(top[k], job.problem.network.layers) for k in others]
            tests |= zip(others, runners.evaluate(configurations), strict=True)
    return [front.row(top[k], scores[k], tests[k], job.problem.energy, k == position) for k in places]


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
    return {
        "model": job.problem.network.model,
        "dataset": job.dataset.name,
        "layers": layers,
        "selection": {
            "rule": _rule(job.settings, within),
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


def _rule(settings: Settings, within: bool) -> str:
    """What the chosen configuration was chosen by."""
    limit, budget = settings.max_acc_drop, settings.budget_exact
    if not within:
        rule = f"highest validation accuracy of all: none lost at most {limit:g} points"
    elif OBJECTIVES[settings.objective].front:
        rule = f"fewest exact multiplications within a validation drop of {limit:g} points"
    else:
        rule = f"highest validation accuracy within a drop of {limit:g} points"
    return rule if budget is None else f"{rule}, at most {budget:.4g} of all multiplications exact"


def _closing_table(job: Job, best: dict, row: dict, layers: Sequence[str], test: Score) -> None:
    """Prints what was chosen: `row` is the search's, `layers` are those of the score's shares."""
    metrics, about, searched = best["metrics"], job.teacher.about, row["drop_points"]
    held_out = [metrics[split] for split in store.SPLITS]
    lines = {
        "float teacher": ["", *(f"{about['float_accuracy'][split]:.2%}" for split in store.SPLITS)],
        "INT8 teacher": [f"{row['accuracy'] + searched / 100:.2%}", *(f"{each['teacher']:.2%}" for each in held_out)],
        "chosen configuration": [f"{row['accuracy']:.2%}", *(f"{each['student']:.2%}" for each in held_out)],
        "drop, points": [f"{drop:.2f}" for drop in (searched, *(each["drop_points"] for each in held_out))],
        "gap: search drop minus it": ["", *(f"{searched - each['drop_points']:.2f}" for each in held_out)],
    }
    table = Table("", "search", *store.SPLITS, box=box.SIMPLE)
    for name, told in lines.items():
        table.add_row(name, *told)
    console = Console(width=100, highlight=False)
    console.print(table)
    console.print(f"chosen: {best['selection']['rule']} (rank {best['selection']['rank_by_return']} by return)")
    costs = Table("multiplications by", *cost.KINDS, "zero in the exact network", box=box.SIMPLE)
    told = [*zip(layers, test.layer_shares, test.layer_zero_natural, strict=True)]
    for name, shares, natural in [*told, ("all these layers", test.shares, test.zero_natural)]:
        costs.add_row(name, *(f"{share:.2%}" for share in (*shares, natural)))
    console.print(costs)
