"""Makes a student for a configuration: corrects it, trains it, and measures what that brought."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from approx_env.adapt import correction, student
from approx_env.adapt.finetune import FineTuning, Recipe
from approx_env.adapt.simulation import Configuration
from approx_env.int8.network import Network
from approx_env.scoring.evaluator import Evaluator, Problem, Score
from approx_env.teachers.checkpoint import Checkpoint
from search.job import Job, describe
from search.results import store
from search.results.folder import Folder

SUMMARY, CHECKPOINT = "finetune.json", "student.checkpoint"
MEASUREMENTS = 10  # of validation during a training, at even distances
CHECKPOINT_STEPS = 100  # between two checkpoints


@dataclass(frozen=True)
class Adaptation:
    """What a student is made from."""

    job: Job
    configuration: Configuration  # codes and tmax by layer, in forward order
    method: str | None  # of the correction; None: the teacher's own numbers
    recipe: Recipe
    output: Path  # folder of what is written
    device: str = "cpu"

    def problem(self, split: str) -> Problem:
        """What students are scored on: held-out images, and tmax as the configuration has it."""
        return self._with_tmax(self.job.held_out[split])

    def corrected(self) -> Network:
        """The student before training."""
        problem = self._with_tmax(self.job.problem)
        if self.method is None:
            return problem.network
        settings = self.job.settings
        images, _ = self.job.dataset.load("calibration", settings.calib_batches * settings.calib_batch_size)
        return correction.correct(problem.network, problem.calibration, self.codes, images, self.method)

    @property
    def codes(self) -> list[tuple[int, ...]]:
        """The codes of every layer, in forward order."""
        return [tuple(codes) for codes, _ in self.configuration.values()]

    def _with_tmax(self, problem: Problem) -> Problem:
        limits = {name: tmax for name, (_, tmax) in self.configuration.items()}
        return replace(problem, calibration=problem.calibration.with_tmax(limits))


def adapt(adaptation: Adaptation) -> None:
    """Corrects, trains and measures a student, and writes it; goes on from a checkpoint if there is one.

    Of the student before training and the one after it, the better one on validation is chosen. Test is read for it
    alone.

    Raises:
        InputError: the checkpoint is of another training.
    """
    validation = adaptation.problem("validation")
    begin = adaptation.corrected()
    scores = {"codes alone": _score(validation, adaptation, None), "corrected": _score(validation, adaptation, begin)}
    _tell("codes alone", scores["codes alone"])
    _tell(f"corrected by {adaptation.method or 'nothing'}", scores["corrected"])
    candidates, curve = {"corrected": begin}, []
    if adaptation.recipe.epochs:
        candidates["trained"], curve = _trained(adaptation, begin, validation)
        scores["trained"] = _score(validation, adaptation, candidates["trained"])
    # Of equal ones the trained student.
    chosen = max(reversed(candidates), key=lambda name: scores[name].accuracy)
    test = _score(adaptation.problem("test"), adaptation, candidates[chosen])
    _write(adaptation, candidates[chosen], chosen, scores, test, curve)
    _closing_table(scores, chosen, test)


def _trained(adaptation: Adaptation, begin: Network, validation: Problem) -> tuple[Network, list[dict[str, float]]]:
    """The student after training, and what validation said on the way."""
    job, recipe = adaptation.job, adaptation.recipe
    images = job.dataset.load("train", whole=True)
    tuning = FineTuning(
        job.problem.network, begin, adaptation.configuration, images, recipe, mirrored=job.dataset.mirrored,
        engine=job.settings.engine if adaptation.device == "cpu" else "portable", device=adaptation.device,
    )  # fmt: skip
    checkpoint = Checkpoint(adaptation.output / CHECKPOINT, _identity(adaptation), "step")
    tuning.resume(checkpoint)
    curve, losses, since = [], [], time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("fine-tuning steps", total=tuning.steps, completed=tuning.done)
        while tuning.done < tuning.steps:
            losses.append(tuning.advance())
            progress.update(task, completed=tuning.done)
            if tuning.done % CHECKPOINT_STEPS == 0:
                tuning.save(checkpoint)
            if tuning.done * MEASUREMENTS // tuning.steps > (tuning.done - 1) * MEASUREMENTS // tuning.steps:
                seconds = (time.perf_counter() - since) / len(losses)
                score = _score(validation, adaptation, tuning.student())
                point = {"step": tuning.done, "loss": sum(losses) / len(losses), "drop_points": score.drop_points,
                         "kd": score.kd, "step_seconds": seconds}  # fmt: skip
                curve.append(point)
                progress.console.print(
                    f"step {tuning.done}/{tuning.steps}: loss {point['loss']:.4f}, drop on validation "
                    f"{score.drop_points:.2f}, KD {score.kd:.4f}, {seconds:.2f} s a step", highlight=False,
                    soft_wrap=True,
                )  # fmt: skip
                losses, since = [], time.perf_counter()
    return tuning.student(), curve


def _score(problem: Problem, adaptation: Adaptation, network: Network | None) -> Score:
    return Evaluator(replace(problem, student=network)).evaluate(adaptation.codes)


def _identity(adaptation: Adaptation) -> dict[str, Any]:
    """Whose checkpoint it is."""
    return {
        "teacher": adaptation.job.teacher.about.get("sha256"),
        "images": adaptation.job.dataset.digest,
        "layers": {name: [list(codes), tmax] for name, (codes, tmax) in adaptation.configuration.items()},
        "correction": adaptation.method,
    } | asdict(adaptation.recipe)


def _write(
    adaptation: Adaptation,
    chosen: Network,
    name: str,
    scores: Mapping[str, Score],
    test: Score,
    curve: list[dict[str, float]],
) -> None:
    job, about = adaptation.job, describe(adaptation.job)
    measured = {step: {"drop_points": score.drop_points, "kd": score.kd} for step, score in scores.items()}
    made = {
        "run": job.name,
        "chosen": name,
        "correction": adaptation.method,
        "recipe": asdict(adaptation.recipe),
        "validation": measured,
        "test": {"drop_points": test.drop_points, "kd": test.kd, "accuracy": test.accuracy},
        "commit": about["commit"],
        "versions": about["versions"],
    }
    student.write(adaptation.output / store.STUDENT, chosen, adaptation.configuration, job.teacher.about, made)
    summary = {"command": ["python", *sys.orig_argv[1:]], "time": about["started"], **made, "curve": curve}
    Folder(adaptation.output).write_json(SUMMARY, summary)
    with suppress(FileNotFoundError):
        (adaptation.output / CHECKPOINT).unlink()


def _tell(what: str, score: Score) -> None:
    print(f"{what}: drop on validation {score.drop_points:.2f} points, KD {score.kd:.4f}", flush=True)


def _closing_table(scores: Mapping[str, Score], chosen: str, test: Score) -> None:
    table = Table("drop, points", "validation", "test", box=box.SIMPLE)
    for name, score in scores.items():
        table.add_row(name, f"{score.drop_points:.2f}", f"{test.drop_points:.2f}" if name == chosen else "")
    Console(width=100, highlight=False).print(table)
    print(f"chosen: {chosen}, the better one on validation")
