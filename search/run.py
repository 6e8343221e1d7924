"""The main job: `python -m search.run --layers squeezenet`. Teacher, calibration, search, selection, results."""

from __future__ import annotations

import os

# One thread a process: env runners share the cores. Both must be set before torch and Ray are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: see main()
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # no banner: our own line tells the progress

import datetime
import importlib.metadata
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from approx_env import calibration, cost, data, teacher
from approx_env.errors import InputError
from approx_env.evaluator import Configuration, Evaluator, Problem, Reward
from approx_env.network import pool_first
from approx_env.tap import CODES
from search import config, selection, store
from search.config import Settings

OBJECT_STORE_BYTES = 512 * 2**20
CONNECT_SECONDS = 5
PACKAGES = ("tapsearch", "torch", "torchvision", "ray", "gymnasium", "numpy", "numba", "pandas", "pyarrow")


@dataclass(frozen=True)
class Job:
    """What is read and checked before anything is started or written."""

    settings: Settings
    dataset: data.Dataset
    teacher: teacher.Teacher
    problem: Problem
    held_out: dict[str, Problem]  # the same on the validation and on the test images
    name: str
    folder: Path


def prepare(settings: Settings) -> Job:
    """Reads dataset and teacher and calibrates; writes nothing.

    Raises:
        InputError: with every problem found.
    """
    name = settings.run_name or _default_name(settings)
    folder = Path(settings.results) / name
    dataset = data.load(settings.dataset, settings.data_dir)
    chosen = teacher.read(settings.teacher or teacher.path_of(settings.layers, dataset.name))
    settings = _fill_in(settings, dataset)
    problems = _mismatches(settings, dataset, chosen)
    if folder.exists():
        problems.append(f"{folder} exists: choose another --run-name, or remove it")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        problems.append(f"--results {settings.results} cannot be written below {above}: choose another folder")
    if problems:
        raise InputError(problems)
    images, _ = dataset.load("calibration", settings.calib_batches * settings.batch_size)
    calibrated = calibration.calibrate(
        chosen.network,
        np.split(images, settings.calib_batches),
        tmax_percentile=settings.tmax_percentile,
        tmax_offset=settings.tmax_offset,
    )
    reward = Reward(settings.accuracy, settings.kd_temperature, settings.kd_weight, settings.at_weight)
    problem = Problem(chosen.network, calibrated, *dataset.load("search", settings.search_images), reward)
    held_out = {}
    for split in ("validation", "test"):  # read now, so that a broken image ends the run before it begins
        pixels, labels = dataset.load(split)
        held_out[split] = replace(problem, images=pixels, labels=labels)
    return Job(settings, dataset, chosen, problem, held_out, name, folder)


def _default_name(settings: Settings) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"{settings.layers}-{settings.dataset}-{settings.algorithm}-{now:%Y%m%d-%H%M%S}"


def _fill_in(settings: Settings, dataset: data.Dataset) -> Settings:
    """Settles the defaults that depend on the dataset."""
    images = settings.search_images or min(config.DEFAULT_SEARCH_IMAGES, dataset.size("search"))
    return replace(settings, search_images=images)


def _mismatches(settings: Settings, dataset: data.Dataset, chosen: teacher.Teacher) -> list[str]:
    """What dataset, teacher and options disagree on."""
    problems = []
    network, file = chosen.network, chosen.about["file"]
    if network.model != settings.layers:
        problems.append(f"teacher {file} is a {network.model}, and --layers asks for {settings.layers}")
    if len(network.classes) != len(dataset.classes):
        problems.append(
            f"teacher {file} knows {len(network.classes)} classes, and {dataset.name} has {len(dataset.classes)}: "
            "give one that was trained on this dataset with --teacher"
        )
    wanted = settings.calib_batches * settings.batch_size
    if wanted > dataset.size("calibration"):
        problems.append(
            f"--calib-batches {settings.calib_batches} x --batch-size {settings.batch_size} asks for {wanted} images, "
            f"and the calibration split of {dataset.name} has {dataset.size('calibration')}: ask for fewer"
        )
    if settings.search_images > dataset.size("search"):
        problems.append(
            f"--search-images {settings.search_images}: the search split of {dataset.name} has "
            f"{dataset.size('search')}: ask for fewer"
        )
    return problems


def claim(job: Job) -> None:
    """Makes the run's folder, with run.json in it.

    Raises:
        InputError: somebody else has just made it, or it cannot be written.
    """
    try:
        (job.folder / store.EPISODES).mkdir(parents=True)
        store.write_json(job.folder / "run.json", describe(job))
    except OSError as error:
        raise InputError(f"--results {job.settings.results} cannot be written ({error}): choose another") from error


def announce(job: Job) -> None:
    """Prints what the search is about to work on."""
    network, settings, about = job.problem.network, job.settings, job.teacher.about
    kinds = [len(network.shapes[name]) for name in network.layers]
    mixed = f" ({kinds.count(3)} conv + {kinds.count(1)} fc)" if 1 in kinds else ""
    print(f"teacher {about['file']}: float {_percent(about['float_accuracy']['validation'])}, "
          f"INT8 {_percent(about['int8_accuracy']['validation'])} on validation")  # fmt: skip
    if about["dataset"] != job.dataset.name:
        print(f"note: it was trained on {about['dataset']}, and the search runs on {job.dataset.name}")
    print(f"{network.model}: {len(network.layers)} layers{mixed}, attention on {', '.join(network.attention)}")
    print(job.problem.calibration.table())
    moved = pool_first(network)
    print(f"these layers feed {_percent(cost.covered(moved, cost.readers(moved)))} of the network's multiplications")
    print(f"{settings.algorithm}: {settings.budget} episodes for each of seeds {settings.seeds} on "
          f"{settings.search_images} search images, {settings.runners} env runners", flush=True)  # fmt: skip


def search(job: Job) -> None:
    """Runs the searches on Ray, then selects and writes the results."""
    import ray

    from search import sink, trials

    settings, problem = job.settings, job.problem
    temporary = tempfile.mkdtemp(prefix="tapsearch-") if settings.address == "local" else None
    try:
        _start_ray(settings, temporary)
        claim(job)
        info = sink.RunInfo(job.name, problem.network.model, job.dataset.name, problem.network.layers,
                            problem.calibration.tmax, settings.search_images)  # fmt: skip
        handle = sink.Sink.options(name=sink.actor_name(job.name), namespace=sink.NAMESPACE).remote(
            str(job.folder.resolve()), info, sink.share(problem), settings.top
        )
        try:
            trials.run(settings, job.name, job.folder, problem, handle)
        finally:
            rows = _count_rows(handle)
            print(f"{rows} configurations scored, all kept in {job.folder / store.EPISODES}", flush=True)
        finish(job, ray.get(handle.top.remote()))
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _start_ray(settings: Settings, temporary: str | None) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}
    if temporary is None:
        try:
            if settings.address != "auto":  # Ray itself would try for minutes
                host, port = settings.address.rsplit(":", 1)
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            ray.init(address=settings.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"--address {settings.address}: no Ray cluster answers there ({error})") from error
    else:
        ray.init(address="local", object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
                 _temp_dir=temporary, **quiet)  # fmt: skip


def _count_rows(handle) -> int:
    import ray

    ray.get(handle.flush.remote(), timeout=5)
    return ray.get(handle.progress.remote(), timeout=5).rows


def finish(job: Job, top: list[dict[str, Any]]) -> None:
    """Validates the best configurations, chooses one, reads test for it alone, and writes the results."""
    layers, settings = job.problem.network.layers, job.settings
    configurations = [store.codes_of(row, layers) for row in top]
    validation = job.held_out["validation"]
    print(f"scoring the best {len(top)} on {len(validation.labels)} validation images", flush=True)
    scores, teacher_accuracy = evaluate_all(validation, configurations, settings.runners)
    accuracies = [score["accuracy"] for score in scores]
    drops = [score["drop_points"] for score in scores]
    rows = [
        dict(row, validation_accuracy=accuracy, validation_drop_points=drop)
        for row, accuracy, drop in zip(top, accuracies, drops, strict=True)
    ]
    columns = store.validated_schema(layers)
    store.write_table(job.folder / store.TOP, rows, columns)
    position, within = selection.choose(accuracies, drops, settings.max_acc_drop)
    test_evaluator = Evaluator(job.held_out["test"])
    test = test_evaluator.evaluate(configurations[position])
    measured = {
        "validation": {"teacher": teacher_accuracy, "student": accuracies[position], "drop_points": drops[position]},
        "test": {"teacher": test_evaluator.teacher_accuracy, "student": test.accuracy, "drop_points": test.drop_points},
    }
    best = _best_json(job, configurations[position], top[position], measured, within, position)
    store.write_json(job.folder / "best.json", best)
    _closing_table(job, best, test)


def evaluate_all(problem: Problem, configurations: list[Configuration], runners: int) -> tuple[list[dict], float]:
    """Scores configurations on `runners` processes; gives their outcomes in order, and the teacher's accuracy."""
    import ray

    from search.baselines import Runner

    shared = ray.put(problem)
    actors = [Runner.remote(shared) for _ in range(min(max(1, runners), len(configurations)))]
    scores = ray.get([actors[k % len(actors)].evaluate.remote(c) for k, c in enumerate(configurations)])
    accuracy = ray.get(actors[0].teacher_accuracy.remote())
    for actor in actors:
        ray.kill(actor)
    return scores, accuracy


def _best_json(job: Job, configuration: Configuration, row: dict, measured: dict, within: bool, rank: int) -> dict:
    calibrated = job.problem.calibration
    layers = {
        layer.name: {f"{name}_code": code for name, code in zip(CODES, codes, strict=True)} | {"tmax_code": layer.tmax}
        for layer, codes in zip(calibrated.layers, configuration, strict=True)
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
            "float_teacher": job.teacher.about["float_accuracy"],
        },
    }  # fmt: skip


def _closing_table(job: Job, best: dict, test) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metrics, about = best["metrics"], job.teacher.about
    table = Table("", "validation", "test", box=box.SIMPLE)
    splits = ("validation", "test")
    table.add_row("float teacher", *(_percent(about["float_accuracy"][split]) for split in splits))
    table.add_row("INT8 teacher", *(_percent(metrics[split]["teacher"]) for split in splits))
    table.add_row("chosen configuration", *(_percent(metrics[split]["student"]) for split in splits))
    table.add_row("drop, points", *(f"{metrics[split]['drop_points']:.2f}" for split in splits))
    console = Console(width=100, highlight=False)
    console.print(table)
    console.print(f"chosen: {best['selection']['rule']} (rank {best['selection']['rank_by_return']} by return)")
    costs = Table("multiplications by", *cost.KINDS, box=box.SIMPLE)
    for name, shares in zip((*best["layers"], "all these layers"), (*test.layer_shares, test.shares), strict=True):
        costs.add_row(name, *map(_percent, shares))
    console.print(costs)
    print(f"results in {job.folder}")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def describe(job: Job) -> dict[str, Any]:
    """run.json: what is needed to understand and repeat the run."""
    return {
        "run": job.name,
        "schema_version": store.SCHEMA_VERSION,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "search.run", *sys.argv[1:]],
        "arguments": asdict(job.settings) | {"episodes": job.settings.budget, "num_env_runners": job.settings.runners},
        "seeds": list(job.settings.seeds),
        "dataset": job.dataset.name,
        "split_seed": data.SPLIT_SEED,
        "splits": {split: job.dataset.size(split) for split in data.SPLITS},
        "teacher": job.teacher.about,
        "layers": {
            layer.name: {"tmax": layer.tmax, "quintile": layer.quintile} for layer in job.problem.calibration.layers
        },
        "commit": _commit(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "python": sys.version.split()[0],
        "cpu_threads": os.cpu_count(),
    }


def _commit() -> str | None:
    """The commit of this source tree; None where it is not a git checkout."""
    try:
        told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return told.stdout.strip() or None


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    try:
        job = prepare(config.parse(argv))
        announce(job)
        search(job)
    except InputError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
