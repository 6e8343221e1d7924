"""Trains SqueezeNets over a grid of metaparameters: `python -m search.architecture --help`.

One Tune trial trains one pair of squeeze ratio SR and share of 3x3 filters; ASHA (Li et al., MLSys 2020) stops those
that are behind. Every epoch is a row of `epochs.parquet`; two figures show accuracy and model size against each
metaparameter, as figure 3 of Iandola et al., arXiv:1602.07360, does.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approx_env.errors import InputError, exit_status, run_module
from search.workers import processes

if __name__ == "__main__":  # before the rest is loaded; Ray's workers can import this module, but not __main__
    processes.prepare()
    sys.exit(run_module("search.architecture"))

import pandas as pd
import pyarrow as pa
import torch

from approx_env import data, options
from approx_env.engines import memory
from approx_env.options import integer, listed, option
from approx_env.teachers import models
from approx_env.teachers.training import loop
from approx_env.teachers.training.recipe import Recipe
from search import config
from search.results import store
from search.results.folder import Folder

BYTES = 4  # of a float parameter
GRACE = 4  # ASHA stops nothing before this share of the epochs is done
REDUCTION = 2  # and lets one in so many go on at each rung
FIGURES = {"sr": "squeeze ratio SR", "pct3x3": "share of 3x3 filters in the expand layers"}
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("sr", pa.float64()),
        ("pct3x3", pa.float64()),
        ("seed", pa.int64()),
        ("epoch", pa.int64()),
        ("epochs", pa.int64()),  # that a training not stopped early has
        ("parameters", pa.int64()),
        ("float_bytes", pa.int64()),
        ("loss", pa.float64()),
        ("validation_accuracy", pa.float64()),  # share of images, in [0, 1]
        ("learning_rate", pa.float64()),
        ("seconds", pa.float64()),
        ("input_seconds", pa.float64()),
    ]
)


def _shares(default: tuple[float, ...], help: str, **bounds) -> Any:
    return option(
        default, help, type=listed(float), kind="different numbers, as 0.25,0.5", metavar="LIST", above=0, **bounds
    )


@dataclass(frozen=True)
class Settings:
    """Everything that the command line decides."""

    sr: tuple[float, ...] = _shares((0.125, 0.25, 0.5, 0.75, 1.0), "squeeze ratios", high=1)
    pct3x3: tuple[float, ...] = _shares((0.01, 0.25, 0.5, 0.75, 0.99), "shares of 3x3 filters", below=1)
    model: str = option(
        "squeezenet", "which SqueezeNet", choices=tuple(name for name in models.MODELS if name.startswith("squeezenet"))
    )
    dataset: str = option("digits", "images to train and validate on", choices=data.DATASETS)
    data_dir: str | None = option(None, "folder of cifar10 (default data) or imagefolder", metavar="DIR")
    epochs: int = integer(12, "passes over the train split of a training that is not stopped early", 1)
    batch_size: int = integer(64, "images a step", 2)
    seed: int = integer(0, "of every training", 0)
    address: str = option("local", "Ray cluster: local (start one), auto, or HOST:PORT", metavar="ADDRESS")
    results: str = option("results", "folder that holds the runs", metavar="DIR")
    run_name: str | None = option(None, "name of this run's folder (default: from model and time)", metavar="NAME")


def train_one(point: dict[str, float], settings: Settings, dataset: data.Dataset) -> None:
    """A Tune trial: trains the SqueezeNet of `point` and reports each epoch."""
    from ray import tune

    torch.set_num_threads(1)
    memory.keep_freed_memory()
    recipe = Recipe(epochs=settings.epochs, batch_size=settings.batch_size, precision="float32",
                             seed=settings.seed, **point)  # fmt: skip
    shape = models.outline(settings.model, len(dataset.classes), **recipe.architecture)
    count = sum(parameter.numel() for parameter in shape.parameters())
    fixed = {"model": settings.model, "dataset": dataset.name, "seed": settings.seed, **point,
             "parameters": count, "float_bytes": BYTES * count}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            settings.model, dataset, recipe, Path(folder) / "checkpoint",
            observe=lambda record: tune.report({name: (fixed | record)[name] for name in COLUMNS.names}),
        )  # fmt: skip


def search(settings: Settings, dataset: data.Dataset, folder: Path, scratch: Path) -> pd.DataFrame:
    """Trains the grid on the Ray that is connected, keeps the rows in `folder` (Tune its own in `scratch`)."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    rows: list[dict[str, Any]] = []

    class Keeper(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
            rows.append({name: result[name] for name in COLUMNS.names})
            Folder(folder).write("epochs.parquet", store.parquet(rows, COLUMNS))
            share = f"{result['validation_accuracy']:.2%}"
            print(f"SR {result['sr']:g}, 3x3 {result['pct3x3']:g}: epoch {result['epoch']}/{settings.epochs}, "
                  f"validation accuracy {share}", flush=True)  # fmt: skip

    results = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_one, settings=settings, dataset=dataset), {"cpu": 1}),
        param_space={"sr": tune.grid_search(list(settings.sr)), "pct3x3": tune.grid_search(list(settings.pct3x3))},
        tune_config=tune.TuneConfig(
            metric="validation_accuracy",
            mode="max",
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=settings.epochs,
                grace_period=max(1, settings.epochs // GRACE),
                reduction_factor=REDUCTION,
            ),
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(scratch), verbose=0, callbacks=[Keeper()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()  # fmt: skip
    if results.errors:
        raise RuntimeError(f"a training failed: {results.errors[0]}")
    return pd.DataFrame(rows)


def last_epochs(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of each pair of metaparameters, best accuracy first."""
    last = rows.sort_values("epoch").groupby(["sr", "pct3x3"], as_index=False).last()
    return last.sort_values("validation_accuracy", ascending=False, ignore_index=True)


def draw(rows: pd.DataFrame, along: str, path: Path) -> None:
    """Draws accuracy and model size against the metaparameter `along`, a line for each value of the other one.

    A hollow marker is a training that ASHA has stopped early.
    """
    from matplotlib.figure import Figure

    (other,) = set(FIGURES) - {along}
    figure = Figure(figsize=(6, 7), layout="constrained")
    accuracy, size = figure.subplots(2, 1, sharex=True)
    for value, line in last_epochs(rows).groupby(other):
        line = line.sort_values(along)
        (drawn,) = accuracy.plot(line[along], 100 * line["validation_accuracy"], label=f"{other} {value:g}")
        whole = line["epoch"] == line["epochs"]
        for part, filled in ((line[whole], drawn.get_color()), (line[~whole], "none")):
            accuracy.scatter(
                part[along], 100 * part["validation_accuracy"], facecolors=filled, edgecolors=drawn.get_color()
            )
        size.plot(line[along], line["float_bytes"] / 1e6, marker="o")
    accuracy.set_ylabel("validation accuracy, %")
    size.set_ylabel("model size in float, MB")
    size.set_xlabel(FIGURES[along])
    accuracy.set_title(f"{rows['model'].iloc[0]} on {rows['dataset'].iloc[0]} (hollow: stopped early)")
    accuracy.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _run(argv: list[str] | None) -> None:
    processes.prepare()
    description = "Trains SqueezeNets over a grid of metaparameters."
    settings = options.parse(Settings, "python -m search.architecture", description, argv, _contradictions)
    dataset = data.load(settings.dataset, settings.data_dir).sized(models.outline(settings.model).image_size)
    for split in ("train", "validation"):  # a broken image ends the command before anything is started
        dataset.load(split)
    now = datetime.datetime.now(datetime.UTC)
    folder = Path(settings.results) / (settings.run_name or f"{settings.model}-architecture-{now:%Y%m%d-%H%M%S}")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{folder} exists: choose another --run-name, or remove it") from error
    except OSError as error:
        raise InputError(f"--results {settings.results} cannot be written ({error}): choose another folder") from error
    print(f"{settings.model} on {dataset.name}: {len(settings.sr) * len(settings.pct3x3)} trainings of at most "
          f"{settings.epochs} epochs", flush=True)  # fmt: skip
    from search.workers.session import session

    with session(settings.address, same_bits=False) as scratch:
        rows = search(settings, dataset, folder, scratch)
    for along in FIGURES:
        draw(rows, along, folder / f"accuracy-and-size-by-{along}.png")
    print(last_epochs(rows)[["sr", "pct3x3", "epoch", "parameters", "float_bytes", "validation_accuracy"]].to_string())
    print(f"results in {folder}")


def _contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
    yield from data.contradictions(settings.dataset, given)
    yield from config.session_contradictions(settings.address, settings.run_name)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
