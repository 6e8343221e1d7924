"""Makes an INT8 student for a run's configuration: `python -m search.finetune --run RUN`.

The student's requantisation is corrected, then its weights are trained under TAP towards the exact teacher, without
labels. `student.int8.json` and `.safetensors` hold it, `finetune.json` what it measured. A command that was cut off
goes on where it stopped when it is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from approx_env.errors import InputError, exit_status, run_module

if __name__ == "__main__":  # before the rest is loaded
    sys.exit(run_module("search.finetune"))

import torch

from approx_env import options, tap
from approx_env.adapt import correction, no_tail
from approx_env.adapt.finetune import Recipe
from approx_env.adapt.simulation import Configuration
from approx_env.engines import memory
from approx_env.options import option, switch
from search import codes, config
from search.job import Job, prepare
from search.results import page, store
from search.stages.adaptation import Adaptation, adapt


@dataclass(frozen=True)
class Settings(Recipe):
    """Everything that the command line decides."""

    run: str | None = option(None, "run of --results whose teacher, layers and images these are", metavar="RUN")
    results: str = option("results", "folder that holds the runs", metavar="DIR")
    codes: str | None = option(
        None, f"best.json or a file like it, or {codes.QUINTILE} (default: what the run chose)", metavar="FILE"
    )
    no_tail: bool = switch(
        False, "leaves no activation exact: tmax is 255, and codes begin where the squared error is least"
    )
    correction: str = option(
        correction.DEFAULT, "how requantisation is fitted before training", choices=("none", *correction.METHODS)
    )
    data_dir: str | None = option(None, "folder of the images (default: the run's)", metavar="DIR")
    teacher: str | None = option(None, ".int8.json of the teacher (default: the run's)", metavar="FILE")
    device: str = option("cpu", "where the student is trained", choices=("cpu", "cuda"))
    output: str | None = option(None, "folder of the student (default: the run's)", metavar="DIR")


def read_codes(settings: Settings, job: Job) -> Configuration:
    """The codes and tmax of every layer of the run.

    Raises:
        InputError: they cannot be read, or are not valid.
    """
    calibration = job.problem.calibration
    if settings.no_tail:
        return {layer.name: (no_tail.least_squares(layer.histogram), tap.HIGHEST_CODE) for layer in calibration.layers}
    if settings.codes is None:
        return codes.of_run(job.folder, job.problem.network.layers)
    if settings.codes == codes.QUINTILE:
        return codes.quintile(calibration)
    layers = codes.layers_of(codes.read(settings.codes), settings.codes)
    return codes.checked(layers, job.problem.network.layers, settings.codes)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    description = "Trains an INT8 student under a run's configuration."
    settings = options.parse(Settings, "python -m search.finetune", description, argv, _contradictions)
    job = prepare(
        config.Settings(
            resume=settings.run, results=settings.results, data_dir=settings.data_dir, teacher=settings.teacher
        )
    )
    output = _output(settings, job)
    recipe = Recipe(**{entry.name: getattr(settings, entry.name) for entry in fields(Recipe)})
    method = None if settings.correction == "none" else settings.correction
    adaptation = Adaptation(job, read_codes(settings, job), recipe, output, method, settings.device)
    memory.keep_freed_memory()
    adapt(adaptation)
    if settings.output is None:
        page.write(job.folder)
    print(f"student in {output}")


def _output(settings: Settings, job: Job) -> Path:
    """The folder of the student; made if it is not there.

    Raises:
        InputError: it is no folder of this machine, cannot be written, or holds a student.
    """
    if settings.output is None and not job.folder.local:
        raise InputError(f"--output must name a folder of this machine, for {job.folder} is in an object store")
    output = Path(settings.output or job.folder.path)
    try:
        there = [name for name in (store.STUDENT, store.STUDENT_SUMMARY) if (output / name).exists()]
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{store.STUDENT_SUMMARY}.tmp").touch()
        (output / f"{store.STUDENT_SUMMARY}.tmp").unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"--output {output} cannot be written ({error}): choose another folder") from error
    if there:
        raise InputError(f"{output} holds a student ({there[0]}): move it, or choose another --output")
    return output


def _contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
    if settings.run is None:
        yield {"run"}, "--run must name a run of --results: without it there is no teacher and no configuration"
    if {"codes", "no_tail"} <= given:
        yield {"codes", "no_tail"}, "--no-tail finds codes of its own: leave --codes out"
    if settings.hold_exact and not settings.learn_codes:
        yield {"hold_exact", "learn_codes"}, "--hold-exact moves tmax with codes that are learnt: add --learn-codes"
    if settings.device == "cuda" and not torch.cuda.is_available():
        yield {"device"}, "--device cuda: torch sees no GPU here, use --device cpu"
