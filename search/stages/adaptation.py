"""Makes a student for a configuration: corrects it, trains it, and measures what that brought."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from approx_env.adapt import correction, student
from approx_env.adapt.finetune import BETAS, BIAS_RATE, CODE_RATE, GAIN_RATE, FineTuning, Recipe
from approx_env.adapt.simulation import Configuration
from approx_env.env import measured
from approx_env.int8.network import Network
from approx_env.scoring.distill import with_interval
from approx_env.scoring.evaluator import Evaluator, Score
from approx_env.teachers.checkpoint import Checkpoint
from search import codes
from search.job import Job, describe
from search.results import store
from search.results.folder import Folder
from search.stages import comparison

CHECKPOINT = "student.checkpoint"
MEASUREMENTS = 10  # of validation during a training, at even distances
CHECKPOINT_STEPS = 100  # between two checkpoints


@dataclass(frozen=True)
class Adaptation:
    """What a student is made from."""

    job: Job
    configuration: Configuration  # codes and tmax by layer, in forward order
    recipe: Recipe
    output: Path  # folder of what is written
    method: str | None = correction.DEFAULT  # of the correction; None: the teacher's own numbers
    device: str = "cpu"

    def corrected(self) -> Network:
        """The student before training."""
        job = self.job
        if self.method is None:
            return job.problem.network
        images, _ = job.dataset.load("calibration", job.settings.calib_batches * job.settings.calib_batch_size)
        whole = codes.whole(self.configuration)
        return correction.correct(job.problem.network, job.problem.calibration, whole, images, self.method)


@dataclass(frozen=True)
class _Candidate:
    """A student that may be chosen, and what it scored on validation."""

    network: Network
    configuration: Configuration
    score: Score


def adapt(adaptation: Adaptation) -> None:
    """Corrects, trains and measures a student, and writes it; goes on from a checkpoint if there is one.

    Of the student before training and the one after it, the better one on validation is chosen. Test is read for it
    alone.

    Raises:
        InputError: the checkpoint is of another training.
    """
    validation = Evaluator(adaptation.job.held_out["validation"])
    begin, configuration = adaptation.corrected(), adaptation.configuration
    plain = _scored(validation, adaptation.job.problem.network, configuration)
    _tell("codes alone", plain.score)
    candidates, curve = {"corrected": _scored(validation, begin, configuration)}, []
    _tell(f"corrected by {adaptation.method or 'nothing'}", candidates["corrected"].score)
    if adaptation.recipe.epochs:
        candidates["trained"], curve = _trained(adaptation, begin, validation)
    # Of equal ones the trained student.
    chosen = max(reversed(candidates), key=lambda name: candidates[name].score.accuracy)
    best = candidates[chosen]
    test = _scored(Evaluator(adaptation.job.held_out["test"]), best.network, best.configuration).score
    scores = {"codes alone": plain.score} | {name: candidate.score for name, candidate in candidates.items()}
    _write(adaptation, best, chosen, scores, test, curve)
    _closing_table(scores, chosen, test)


def _trained(
    adaptation: Adaptation, begin: Network, validation: Evaluator
) -> tuple[_Candidate, list[dict[str, float]]]:
    """The student after training, and what validation said on the way."""
    job, recipe = adaptation.job, adaptation.recipe
    images = job.dataset.load("train", whole=True)
    tuning = FineTuning(
        job.problem.network, begin, adaptation.configuration, images, recipe, mirrored=job.dataset.mirrored,
        engine=job.settings.engine, device=adaptation.device,
    )  # fmt: skip
    print(f"fine-tuning: {tuning.steps} steps of {tuning.batch} images, gradients in {tuning.precision}", flush=True)
    checkpoint = Checkpoint(adaptation.output / CHECKPOINT, _identity(adaptation), "step")
    tuning.resume(checkpoint)
    curve, total, count = checkpoint.notes or ([], 0.0, 0)  # points so far; sum and number of the losses since
    begun, since, latest = count, time.perf_counter(), None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("fine-tuning steps", total=tuning.steps, completed=tuning.done)
        while tuning.done < tuning.steps:
            total, count = total + tuning.advance(), count + 1
            progress.update(task, completed=tuning.done)
            if tuning.done * MEASUREMENTS // tuning.steps > (tuning.done - 1) * MEASUREMENTS // tuning.steps:
                loss = float(total) / count
                seconds = (time.perf_counter() - since) / (count - begun)
                latest = _scored(validation, tuning.student(), tuning.configuration())
                point = {"step": tuning.done, "loss": loss,
                         "drop_points": latest.score.drop_points, "kd": latest.score.kd,
                         "step_seconds": seconds}  # fmt: skip
                curve.append(point)
                progress.console.print(
                    f"step {tuning.done}/{tuning.steps}: loss {point['loss']:.4f}, drop on validation "
                    f"{point['drop_points']:.2f}, KD {point['kd']:.4f}, {seconds:.2f} s a step", highlight=False,
                    soft_wrap=True,
                )  # fmt: skip
                total, count, begun, since = 0.0, 0, 0, time.perf_counter()
            if tuning.done % CHECKPOINT_STEPS == 0:
                checkpoint.notes = curve, float(total), count
                tuning.save(checkpoint)
    return latest or _scored(validation, tuning.student(), tuning.configuration()), curve


def _scored(evaluator: Evaluator, network: Network, configuration: Configuration) -> _Candidate:
    score = evaluator.with_student(network).evaluate(codes.whole(configuration))
    return _Candidate(network, configuration, score)


def _identity(adaptation: Adaptation) -> dict[str, Any]:
    """Whose checkpoint it is."""
    return {
        "teacher": adaptation.job.teacher.about.get("sha256"),
        "images": adaptation.job.dataset.digest,
        "layers": {name: [list(codes), tmax] for name, (codes, tmax) in adaptation.configuration.items()},
        "correction": adaptation.method,
        "rates": [BIAS_RATE, GAIN_RATE, CODE_RATE, *BETAS],
    } | asdict(adaptation.recipe)


def _write(
    adaptation: Adaptation,
    best: _Candidate,
    chosen: str,
    scores: Mapping[str, Score],
    test: Score,
    curve: list[dict[str, float]],
) -> None:
    job, about = adaptation.job, describe(adaptation.job)
    made = {
        "run": job.name,
        "chosen": chosen,
        "correction": adaptation.method,
        "recipe": asdict(adaptation.recipe),
        "share_of_all_macs": job.share_of_all_macs,
        "cost_table": job.problem.energy.name,
        "validation": {name: _measures(score) for name, score in scores.items()},
        "test": _measures(test),
        "commit": about["commit"],
        "versions": about["versions"],
    }
    student.write(adaptation.output / store.STUDENT, best.network, best.configuration, job.teacher.about, made)
    summary = {"command": ["python", *sys.orig_argv[1:]], "time": about["started"], **made, "curve": curve}
    Folder(adaptation.output).write_json(store.STUDENT_SUMMARY, summary)
    with suppress(FileNotFoundError):
        (adaptation.output / CHECKPOINT).unlink()


def _measures(score: Score) -> dict[str, float]:
    outcome = measured(score)
    told = {name: float(outcome[name]) for name in ("accuracy", "drop_points", "drop_error_points", "kd")}
    return told | comparison.costs(outcome)


def _tell(what: str, score: Score) -> None:
    print(f"{what}: drop on validation {score.drop_points:.2f} points, KD {score.kd:.4f}", flush=True)


def _closing_table(scores: Mapping[str, Score], chosen: str, test: Score) -> None:
    table = Table("drop, points", "validation", "test", box=box.SIMPLE)
    for name, score in scores.items():
        table.add_row(name, _drop(score), _drop(test) if name == chosen else "")
    Console(width=100, highlight=False).print(table)
    print(f"chosen: {chosen}, the better one on validation; its drop has a 95 % interval")


def _drop(score: Score) -> str:
    return with_interval(score.drop_points, score.drop_error_points)
