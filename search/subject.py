"""What is scored or exported after a search: a teacher or its student, codes for its layers, and a dataset.

What is not given follows from the codes. A run's folder says teacher, images and sites; a best.json says network and
dataset; the names of the layers tell which sites they are. A student that comes with a run keeps its own codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from approx_env import data
from approx_env.adapt import student as students
from approx_env.adapt.simulation import Configuration
from approx_env.adapt.student import Student
from approx_env.errors import InputError
from approx_env.int8 import energy
from approx_env.int8.network import Network
from approx_env.int8.sites import CHOICES, with_sites
from approx_env.options import number, option
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Problem, Reward
from approx_env.teachers import models
from approx_env.teachers import store as teachers
from search import codes, config
from search.job import calibrated, mismatch, note_on_images
from search.results import inspection, store
from search.results.folder import Folder
from search.teacher import DEFAULT, named_teacher

OPTIONS = (
    "codes", "student", "model", "weights", "dataset", "data_dir", "teacher", "sites", "calib_batches",
    "calib_batch_size", "tmax_percentile", "tmax_offset", "engine", "device",
)  # fmt: skip
FOLLOWS = "(default: what the codes are of)"


@dataclass(frozen=True)
class Settings(config.Settings):
    """What a command takes that works on finished codes."""

    codes: str | None = option(
        None, f"a run's folder, a best.json or a file like it, or {codes.QUINTILE} (default: the student's)",
        metavar="FILE",
    )  # fmt: skip
    student: str | None = option(None, ".int8.json of search.finetune to run instead of the teacher", metavar="FILE")
    model: str | None = option(
        None, f"network: {models.NAMES} {FOLLOWS}", type=models.named, kind=models.NAMES, metavar="MODEL"
    )
    dataset: str | None = option(None, f"images {FOLLOWS}", choices=data.DATASETS)
    teacher: str | None = option(None, ".int8.json of the teacher (default: the run's, or shipped)", metavar="FILE")
    sites: str | None = option(None, f"layers of the network {FOLLOWS}", choices=CHOICES)
    kd_temperature: float | None = number(
        None, f"temperature of the KD loss, logits {FOLLOWS}, or {Reward.kd_temperature:g}", above=0, high=1000
    )


@dataclass(frozen=True)
class Subject:
    """What is scored or exported."""

    settings: Settings
    dataset: data.Dataset
    teacher: teachers.Teacher
    network: Network  # the teacher's, with the sites that the codes are for
    student: Student | None
    configuration: Configuration  # codes and tmax by layer, in forward order
    notes: tuple[str, ...]  # what does not fit, and may be meant so

    @property
    def runs(self) -> Network:
        """The network that runs under the codes."""
        return self.student.network if self.student else self.network

    @property
    def codes(self) -> list[tuple[int, ...]]:
        """The codes of every layer, in forward order."""
        return [tuple(four) for four, _ in self.configuration.values()]

    def problem(self, split: str, images: int | None = None) -> Problem:
        """Scores the codes on the first `images` of a split."""
        limits = {name: tmax for name, (_, tmax) in self.configuration.items()}
        return Problem(
            self.network, calibration.uncounted(limits), *self.dataset.load(split, images),
            Reward(kd_temperature=self.settings.kd_temperature),
            self.settings.engine, self.settings.device, energy.read(self.settings.cost),
            self.student.network if self.student else None,
        )  # fmt: skip


def contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
    """What is missing, as `options.parse` wants it."""
    if settings.codes is None and settings.student is None:
        yield (
            {"codes"},
            f"--codes must name a run, a file of codes or {codes.QUINTILE}: without --student there are none",
        )


def prepare(settings: Settings, layers: Mapping[str, Any] | None = None) -> Subject:
    """Reads what the settings name; writes nothing.

    Args:
        layers: codes by layer, as best.json has them, in place of `settings.codes`.

    Raises:
        InputError: something cannot be read, or does not belong together.
    """
    about, told, place = ({}, {"layers": layers}, "layers") if layers is not None else _told(settings.codes)
    found = students.read(settings.student) if settings.student else None
    settings = _settled(settings, about, told, found)
    dataset = data.load(settings.dataset, settings.data_dir)
    settings, teacher = named_teacher(settings, dataset)
    dataset = dataset.sized(teacher.network.input_shape[1])
    layers = None if told is None else codes.layers_of(told, place)
    named = found.network.layers if found else layers
    network = _with_layers(teacher.network, named, settings.sites)
    problems = [*_strange(settings, teacher, network, found), *mismatch(dataset, teacher)]
    if problems:
        raise InputError(problems)
    if layers is not None and not (about and found):  # a run's student may have learnt codes of its own
        configuration = codes.checked(layers, network.layers, place)
    elif settings.codes == codes.QUINTILE:
        configuration = codes.quintile(calibrated(settings, dataset, network))
    else:
        configuration = found.configuration
    notes = tuple(_notes(about, dataset, teacher, found, configuration))
    return Subject(settings, dataset, teacher, network, found, configuration, notes)


def _told(place: str | None) -> tuple[dict[str, Any], dict[str, Any] | None, str]:
    """run.json, if codes are a run's; what the file of codes says, if there is one; its place."""
    if place is None or place == codes.QUINTILE:
        return {}, None, ""
    if "://" not in place and not Path(place).is_dir():
        return {}, codes.read(place), place
    folder = Folder(place)
    try:
        about = inspection.run_json(folder)
        arguments = about["arguments"]
        kinds = {"dataset": str, "data_dir": str, "teacher": str, "kd_temperature": int | float}
        odd = [name for name, kind in kinds.items() if not isinstance(arguments.get(name), kind | None)]
        if odd or arguments.get("sites") not in (None, *CHOICES):
            raise ValueError(f"{store.RUN}: arguments.{(odd or ['sites'])[0]} is none that a search has")
    except (OSError, ValueError) as error:
        raise InputError(f"--codes: {folder} holds no run ({error}): name a folder that search.run wrote") from error
    best = f"{folder}/{store.BEST}"
    return about, codes.read(best, lambda: folder.read(store.BEST)), best


def _settled(settings: Settings, about: dict[str, Any], told: dict[str, Any] | None, found: Student | None) -> Settings:
    """The settings with what follows from a run, a file of codes and a student."""
    run, told = about.get("arguments", {}), told or {}
    kind = str(run.get("dataset") or told.get("dataset") or (found and found.about.get("dataset")) or "digits")
    model = run.get("model") or (found and found.network.model) or told.get("model") or DEFAULT
    if settings.teacher and not settings.model:
        model = teachers.read(settings.teacher).network.model
    asked = models.name_of(settings.model) if settings.model else None
    settled = replace(
        settings,
        model=settings.model or str(model),
        dataset=settings.dataset or kind.partition(":")[0],
        data_dir=settings.data_dir or (run.get("data_dir") if settings.dataset in (None, run.get("dataset")) else None),
        teacher=settings.teacher or (run.get("teacher") if asked in (None, run.get("model")) else None),
        sites=settings.sites or run.get("sites"),
        kd_temperature=settings.kd_temperature or run.get("kd_temperature") or Reward.kd_temperature,
    )
    if settled.dataset == "digits" and settings.data_dir:
        raise InputError(f"--data-dir {settings.data_dir}: these codes are of digits, which is bundled: leave it out, "
                         "or name the images with --dataset")  # fmt: skip
    return settled


def _with_layers(network: Network, names: Sequence[str] | None, sites: str | None) -> Network:
    """The network with those sites that have these names; with its own if none do, for the error that follows."""
    made = [with_sites(network, choice) for choice in ([sites] if sites else CHOICES)]
    return next((each for each in made if names is not None and set(each.layers) == set(names)), made[0])


def _strange(settings: Settings, teacher: teachers.Teacher, network: Network, found: Student | None) -> Iterator[str]:
    """What cannot belong together."""
    file = teacher.about["file"]
    if teacher.network.model != settings.model:
        yield f"teacher {file} is a {teacher.network.model}, and a {settings.model} is asked for: name its --teacher"
    if found and (found.network.layers, found.network.attention) != (network.layers, network.attention):
        yield (f"student {settings.student} has layers {', '.join(found.network.layers)}, and teacher {file} has "
               f"{', '.join(network.layers)}: name the --teacher that it was made from")  # fmt: skip


def _notes(
    about: dict[str, Any],
    dataset: data.Dataset,
    teacher: teachers.Teacher,
    found: Student | None,
    configuration: Configuration,
) -> Iterator[str]:
    """What does not fit, and may be meant so."""
    digest, file = teacher.about.get("sha256"), teacher.about["file"]
    if teacher.about.get("dataset") != dataset.name:
        yield f"{file} was trained on {teacher.about.get('dataset')}, and these images are {dataset.name}"
    elif note := note_on_images(teacher, dataset):
        yield note
    if about and about["teacher"].get("sha256") != digest:
        yield f"the run was made with another teacher than {file}"
    if found and found.about["student"].get("teacher_sha256") != digest:
        yield f"the student was made from another teacher than {file}"
    if found and found.configuration != configuration:
        yield "the student was made for other codes"
