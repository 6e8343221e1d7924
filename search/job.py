"""What a run works on: read, checked and calibrated before anything is started or written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from approx_env import data, options
from approx_env.errors import InputError
from approx_env.int8 import cost, energy
from approx_env.int8.network import Network, pool_first
from approx_env.int8.sites import with_sites
from approx_env.scoring import calibration
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Problem
from approx_env.teachers import store as teachers
from search import config, proposal
from search.config import Settings
from search.objectives import OBJECTIVES
from search.results import inspection, lease, store
from search.results.folder import Folder
from search.teacher import named_teacher

PACKAGES = (
    "tapsearch", "torch", "torchvision", "ray", "gymnasium", "numpy", "numba", "pandas", "pyarrow", "cmaes", "optuna",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is read and checked before anything is started or written."""

    settings: Settings
    dataset: data.Dataset
    teacher: teachers.Teacher
    problem: Problem  # as it is searched
    rungs: tuple[Problem, ...]  # it, then the same on more images, which begin with those of the rung before
    held_out: dict[str, Problem]  # the same on the validation and on the test images
    name: str
    folder: Folder
    earlier: dict[str, Any] | None = None  # run.json of a run that goes on
    finished: bool = False  # whether there is nothing left to do

    @property
    def share_of_all_macs(self) -> float:
        """Share of the network's multiply-accumulates, in [0, 1], that read approximated codes; padding left out."""
        return _covered(self.problem.network)

    def calibration_images(self) -> np.ndarray:
        """The images that the layers were calibrated on, `(n, c, h, w) uint8`."""
        return _calibration_images(self.settings, self.dataset)


def prepare(
    settings: Settings, held_out_splits: Sequence[str] = ("validation", "test"), what: str | None = None
) -> Job:
    """Reads dataset and teacher and calibrates; writes nothing.

    Args:
        held_out_splits: which are read besides calibration and search images.
        what: is done, for the name of a run that was given none (default: the algorithm's name).

    Raises:
        InputError: with every problem found.
    """
    settings = replace(settings, algorithm=settings.works)
    earlier = None
    if settings.resume:
        earlier, settings = _go_on(Folder(settings.results) / settings.resume, settings)
    table = energy.read(settings.cost)
    dataset = data.load(settings.dataset, settings.data_dir)
    settings, chosen = named_teacher(settings, dataset)
    usual = f"{settings.model}-{settings.dataset}-{what or settings.algorithm}-{_now():%Y%m%d-%H%M%S}"
    name = settings.run_name or usual
    folder = Folder(settings.results) / (settings.resume or name)
    if earlier:
        name = earlier["run"]  # the folder may have been renamed
    dataset = dataset.sized(chosen.network.input_shape[1])
    settings = _fill_in(settings, dataset)
    problems = _mismatches(settings, dataset, chosen)
    if not earlier and is_there(folder):
        problems.append(f"{folder} exists: choose another --run-name, go on with it by --resume, or remove it")
    if folder.local:
        above = next(parent for parent in Path(folder.path).parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            problems.append(f"--results {settings.results} cannot be written below {above}: choose another folder")
    if problems:
        raise InputError(problems)
    network = with_sites(chosen.network, settings.sites)
    _check_budget(settings, network)
    found = calibrated(settings, dataset, network)
    if settings.init_from is not None:
        begin = _begun_at(folder, earlier, found) if earlier else proposal.start(settings.init_from, found)
        found = replace(found, proposed=begin)
    reward = OBJECTIVES[settings.objective].reward(settings)
    sizes = settings.rungs or (settings.search_images,)
    images, labels = dataset.load("search", sizes[-1])
    rungs = tuple(
        Problem(network, found, images[:size], labels[:size], reward, settings.engine, settings.device, table)
        for size in sizes
    )
    held_out = {}
    for split in held_out_splits:  # read now, so that a broken image ends the run before it begins
        pixels, labels = dataset.load(split)
        held_out[split] = replace(rungs[0], images=pixels, labels=labels)
    finished = earlier is not None and _finished(folder, earlier)
    job = Job(settings, dataset, chosen, rungs[0], rungs, held_out, name, folder, earlier, finished)
    if earlier and (changed := _changed(describe(job), earlier)):
        raise InputError(
            f"{folder} was begun with another {' and another '.join(changed)} than is here now: its rows would not "
            "compare; bring back what it was begun with, or start a new run"
        )
    return job


def _covered(network: Network) -> float:
    moved = pool_first(network)
    return cost.covered(moved, cost.readers(moved))


def _check_budget(settings: Settings, network: Network) -> None:
    """Raises InputError if no configuration could keep the budget: what no layer feeds is always exact."""
    covered = _covered(network)
    if settings.budget_exact is not None and settings.budget_exact < 1 - covered:
        more = " or take --sites all" if settings.sites == "standard" else ""
        raise InputError(
            f"--budget-exact {settings.budget_exact:g}: the layers feed {covered:.1%} of all multiplications, so that "
            f"{1 - covered:.1%} stay exact whatever is chosen: give more than {1 - covered:.4g}{more}"
        )


def calibrated(settings: Settings, dataset: data.Dataset, network: Network) -> calibration.Calibration:
    """The calibration of a network, its layers in the network's order: codes and columns are joined to it by that."""
    images = _calibration_images(settings, dataset)
    made = calibration.calibrate(
        network,
        np.split(images, settings.calib_batches),
        tmax_percentile=settings.tmax_percentile,
        tmax_offset=settings.tmax_offset,
        search_tmax=settings.search_tmax,
        engine=settings.engine,
        device=settings.device,
    )
    by_name = {layer.name: layer for layer in made.layers}
    return replace(made, layers=tuple(by_name[name] for name in network.layers))


def _calibration_images(settings: Settings, dataset: data.Dataset) -> np.ndarray:
    return dataset.load("calibration", settings.calib_batches * settings.calib_batch_size)[0]


def _go_on(folder: Folder, given: Settings) -> tuple[dict[str, Any], Settings]:
    """run.json of a run that goes on, and its settings."""
    try:
        earlier = inspection.run_json(folder)
        settings = config.resumed(given, _parsed(earlier["arguments"]))
        faults = inspection.faults(folder, earlier)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--resume: {folder} holds no run to go on with ({error}): name one of --results") from error
    if faults:
        raise InputError([f"--resume: {folder}/{name} is damaged or of another run ({reason}): remove it, and what it "
                          "held is searched again" for name, reason in faults.items()])  # fmt: skip
    return earlier, settings


def _begun_at(folder: Folder, earlier: dict[str, Any], found: calibration.Calibration) -> Configuration:
    """The configuration that a run's searches began with: it stays, whatever has become of the file it was from."""
    told = [earlier["layers"].get(layer.name, {}).get("start") for layer in found.layers]
    if not (all(isinstance(codes, list) for codes in told) and found.valid(told)):
        raise InputError(f"--resume: {folder}/{store.RUN} lacks a valid 'start' of each layer: bring it back, or start "
                         "a new run")  # fmt: skip
    return tuple(map(tuple, told))


def _parsed(arguments: dict[str, Any]) -> dict[str, Any]:
    """A run's arguments, checked as those of a command line are.

    Raises:
        ValueError: some are not those of a search.
    """
    # Given anew, or a name that need not be on a command line: the teacher is checked against it.
    left_out = {"resume", "results", "address", "num_env_runners", "threads_per_runner", "run_name", "quiet", "json",
                "model"}  # fmt: skip
    if arguments.get("rungs"):
        left_out.add("search_images")  # the first of them
    texts, checked = [], []
    for entry in fields(Settings):
        value = arguments.get(entry.name, entry.default)  # a run from before there was this option
        value = tuple(value) if isinstance(value, list) else value
        if entry.name not in left_out and repr(value) != repr(entry.default):
            texts += [options.flag(entry.name), options.shown(value)]
            checked.append(entry.name)
    parsed = config.parse(texts)
    return {name: value for name, value in arguments.items() if name != "run_name"} | {
        name: getattr(parsed, name) for name in checked
    }


def _finished(folder: Folder, about: dict[str, Any]) -> bool:
    """Whether a run has all its results."""
    try:
        if not folder.exists(store.BEST):
            return False
        best = inspection.best_json(folder, about)
        inspection.chosen(best, store.read(folder))
        inspection.check_top(folder, about)
        inspection.check_baselines(folder, about)
        inspection.check_front(folder, about)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--resume: {folder}: its results are damaged ({error}): remove {store.BEST}, and they are made again"
        ) from error
    return True


def is_there(folder: Folder, name: str = "") -> bool:
    """Whether the folder, or the file `name` in it, is there.

    Raises:
        InputError: that cannot be found out.
    """
    try:
        return folder.exists(name)
    except OSError as error:
        raise InputError(f"--results: {folder} cannot be read ({error}): choose another folder") from error


def _changed(now: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    """What rows depend on and is not as it was."""
    now = json.loads(json.dumps(now))
    kept = ["dataset", "split_seed", "splits", "layers"] + ["cost"] * ("cost" in earlier)
    changed = [name for name in kept if now[name] != earlier.get(name)]
    digests = [told.get("teacher", {}).get("sha256") for told in (now, earlier)]
    return changed + ["teacher"] * (digests[0] != digests[1])


def _fill_in(settings: Settings, dataset: data.Dataset) -> Settings:
    """Settles the defaults that depend on the dataset."""
    if settings.rungs:
        return replace(settings, search_images=settings.rungs[0])
    images = settings.search_images or min(config.DEFAULT_SEARCH_IMAGES, dataset.size("search"))
    return replace(settings, search_images=images)


def _mismatches(settings: Settings, dataset: data.Dataset, chosen: teachers.Teacher) -> list[str]:
    """What dataset, teacher and options disagree on."""
    problems = []
    network, file = chosen.network, chosen.about["file"]
    if network.model != settings.model:
        problems.append(f"teacher {file} is a {network.model}, and --model asks for {settings.model}")
    problems += mismatch(dataset, chosen)
    wanted = settings.calib_batches * settings.calib_batch_size
    if wanted > dataset.size("calibration"):
        problems.append(
            f"--calib-batches {settings.calib_batches} x --calib-batch-size {settings.calib_batch_size} asks for "
            f"{wanted} images, and the calibration split of {dataset.name} has {dataset.size('calibration')}: "
            "ask for fewer"
        )
    sizes = settings.rungs or (settings.search_images,)
    if sizes[-1] > dataset.size("search"):
        problems.append(
            f"{'--rungs' if settings.rungs else '--search-images'} {','.join(map(str, sizes))}: the search split of "
            f"{dataset.name} has {dataset.size('search')}: ask for fewer"
        )
    return problems


def mismatch(dataset: data.Dataset, chosen: teachers.Teacher) -> list[str]:
    """A sentence if a teacher knows other classes than a dataset has."""
    own, others = chosen.network.classes, dataset.classes
    if tuple(own) == tuple(others):
        return []
    return [
        f"teacher {chosen.about['file']} knows {_classes(own, others)}, and {dataset.name} has "
        f"{_classes(others, own)}: give one that was trained on this dataset with --teacher"
    ]


def _classes(own: Sequence[str], others: Sequence[str]) -> str:
    """How many classes there are, or the first one that differs if there are equally many of both."""
    if len(own) != len(others):
        return f"{len(own)} classes"
    position, name = next((k, name) for k, (name, other) in enumerate(zip(own, others, strict=True)) if name != other)
    return f"'{name}' as class {position}"


def claim(job: Job) -> lease.Owner:
    """Makes this process the one that writes the run, and its folder, with run.json in it.

    Raises:
        InputError: another process writes it, or it cannot be written.
    """
    try:
        if not job.earlier:
            job.folder.create()
        if not (episodes := job.folder / store.EPISODES).exists():
            episodes.create()
        owner = lease.take(job.folder, fresh=not job.earlier)
        try:
            if job.earlier:
                again = {"time": _now().isoformat(timespec="seconds"), "versions": _versions(), "commit": commit()}
                job.folder.write_json(store.RUN, job.earlier | {"resumed": [*job.earlier.get("resumed", []), again]})
            else:
                job.folder.write_json(store.RUN, describe(job))
            job.folder.write(store.HISTOGRAMS, _histograms(job.problem.calibration))
        except BaseException:
            lease.release(job.folder, owner)
            raise
    except OSError as error:
        raise InputError(f"--results {job.settings.results} cannot be written ({error}): choose another") from error
    return owner


def _histograms(found: calibration.Calibration) -> bytes:
    """How often each layer's codes came on calibration images, as the bytes of a Parquet file."""
    rows = [{"layer": layer.name, "code": code, "count": int(count)}
            for layer in found.layers for code, count in enumerate(layer.histogram)]  # fmt: skip
    return store.parquet(rows, store.HISTOGRAM_COLUMNS)


def differences(job: Job) -> list[str]:
    """Versions that are not those which a resumed run was begun with, as 'torch 2.15.0, was 2.14.1'."""
    if not job.earlier:
        return []
    now, then = ({"commit": told.get("commit")} | told.get("versions", {}) for told in (describe(job), job.earlier))
    return [f"{name} {version}, was {then.get(name)}" for name, version in now.items() if version != then.get(name)]


def note_on_images(teacher: teachers.Teacher, dataset: data.Dataset) -> str | None:
    """Says so if the teacher was trained on other images under the dataset's name; None if not, or nobody knows."""
    about = teacher.about
    if about["dataset"] != dataset.name or about.get("images", dataset.digest) == dataset.digest:
        return None
    return f"the teacher was trained on other images than {dataset.name} has now, perhaps on some that test it"


def describe(job: Job) -> dict[str, Any]:
    """run.json: what is needed to understand and repeat the run."""
    return {
        "run": job.name,
        "schema_version": store.SCHEMA_VERSION,
        "started": _now().isoformat(timespec="seconds"),
        "command": ["python", "-m", "search.run", *sys.argv[1:]],
        "arguments": asdict(job.settings) | {"episodes": job.settings.budget, "num_env_runners": job.settings.runners},
        "seeds": list(job.settings.seeds),
        "dataset": job.dataset.name,
        "images": job.dataset.digest,
        "split_seed": data.SPLIT_SEED,
        "splits": {split: job.dataset.size(split) for split in data.SPLITS},
        "teacher": job.teacher.about,
        "share_of_all_macs": job.share_of_all_macs,
        "layers": _layers(job.problem.calibration),
        "cost": asdict(job.problem.energy) | {"scope": energy.SCOPE},
        "commit": commit(),
        "versions": _versions(),
        "python": sys.version.split()[0],
        "cpu_threads": os.cpu_count(),
        "host": platform.node(),
        "system": platform.platform(),
    }


def _layers(found: calibration.Calibration) -> dict[str, dict[str, Any]]:
    told = {layer.name: {"tmax": layer.tmax, "quintile": layer.quintile} for layer in found.layers}
    if found.proposed is not None:
        for layer, codes in zip(told.values(), found.proposed, strict=True):
            layer["start"] = codes
    return told


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def commit() -> str | None:
    """The commit of this source tree, with '-dirty' if files differ from it; None where it is no git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return told.stdout.strip() or None
