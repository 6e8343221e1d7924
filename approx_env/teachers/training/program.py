"""The program: reads the command line, trains, quantises, measures and writes one teacher."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from approx_env import data, options
from approx_env.engines import build as engines
from approx_env.engines import memory
from approx_env.engines.vector import convolution
from approx_env.errors import InputError, exit_status
from approx_env.int8 import quantize
from approx_env.int8.network import Network
from approx_env.options import option
from approx_env.teachers import models, store
from approx_env.teachers.journal import Journal
from approx_env.teachers.models import own
from approx_env.teachers.models.blocks import traits
from approx_env.teachers.models.own import origin
from approx_env.teachers.precision import bf16_in_hardware
from approx_env.teachers.training.loop import accuracy, begun, predictor, train, train_quantised
from approx_env.teachers.training.recipe import Recipe


@dataclass(frozen=True)
class Command(Recipe):
    """Everything that the command line decides."""

    model: str = option(
        "squeezenet", f"network to train: {models.NAMES}", type=models.named, kind=models.NAMES, metavar="MODEL"
    )
    dataset: str = option("digits", "images to train on", choices=data.DATASETS)
    data_dir: str | None = option(None, "folder of cifar10 (default data) or imagefolder", metavar="DIR")
    device: str = option("auto", "where to train; auto: cuda if there is one", choices=("auto", "cpu", "cuda"))
    output: str = option("teachers", "where teachers go", metavar="DIR")


@dataclass(frozen=True)
class _Accuracies:
    """Shares of images in [0, 1]."""

    float_: dict[str, float]  # of the float teacher, on validation and test
    by_scales: dict[str, float]  # of each INT8 network, on validation
    int8: dict[str, float]  # of the best of them, on validation and test

    @property
    def chosen(self) -> str:
        """The scales of the INT8 network that is best on validation."""
        return max(self.by_scales, key=self.by_scales.get)


def write_teachers(
    stem: Path,
    model_name: str,
    module: nn.Module,
    dataset: data.Dataset,
    recipe: Recipe,
    *,
    command: str | None = None,
    device: str = "cpu",
    observe: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Quantises a trained `module` and writes `STEM.float.*` and `STEM.int8.*`.

    Scales are fitted on the calibration split in each way there is, and trained if the recipe says so; the INT8
    network that is best on validation is written. Accuracies are measured, printed and kept in the JSON.
    """
    dataset = dataset.sized(traits(module).image_size)
    drafts = _fitted(models.name_of(model_name), module.cpu(), dataset)
    if recipe.qat_epochs:
        told = {"device": device, "observe": observe}
        checkpoint = _beside(stem, "qat.checkpoint")
        drafts["quantisation-aware"] = train_quantised(drafts["MSE-optimal"], dataset, recipe, checkpoint, **told)
    networks = {name: draft.network() for name, draft in drafts.items()}
    found = _measured(module, networks, dataset)
    _tell(found)
    about = _about(dataset, recipe, found, command) | origin(model_name, recipe.weights)
    store.write_float(_beside(stem, "float.json"), models.name_of(model_name), module, about)
    path = _beside(stem, "int8.json")
    store.write(path, networks[found.chosen], about)
    print(f"wrote {path}")


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


def _fitted(model_name: str, module: nn.Module, dataset: data.Dataset) -> dict[str, quantize.Draft]:
    """The module in INT8, with scales fitted in each way there is."""
    calibration, _ = dataset.load("calibration")
    about = traits(module)
    ways = {"MSE-optimal": quantize.mse_scale, "clipped maximum": quantize.clipped_maximum_scale}
    return {
        name: quantize.draft(
            module, calibration, model=model_name, classes=dataset.classes, layers=about.layers,
            attention=about.attention, standardised=about.standardised, scale_of=scale_of,
        )
        for name, scale_of in ways.items()
    }  # fmt: skip


def _measured(module: nn.Module, networks: dict[str, Network], dataset: data.Dataset) -> _Accuracies:
    held_out = {split: dataset.load(split) for split in ("validation", "test")}
    predict = predictor(module, traits(module).standardised)
    float_ = {split: accuracy(predict, *part) for split, part in held_out.items()}
    runners = {name: engines.build(network, _engine()) for name, network in networks.items()}
    by_scales = {name: accuracy(runner.forward, *held_out["validation"]) for name, runner in runners.items()}
    found = _Accuracies(float_, by_scales, {"validation": max(by_scales.values())})
    found.int8["test"] = accuracy(runners[found.chosen].forward, *held_out["test"])
    return found


def _tell(found: _Accuracies) -> None:
    by_scales = {f"INT8, {name} scales": {"validation": share} for name, share in found.by_scales.items()}
    parts = [("float", found.float_), *by_scales.items(), (f"INT8, {found.chosen} scales", found.int8)]
    for what, shares in parts:
        print(f"{what}: " + ", ".join(f"{share:.2%} on {split}" for split, share in shares.items()), flush=True)


def _about(dataset: data.Dataset, recipe: Recipe, found: _Accuracies, command: str | None) -> dict[str, Any]:
    """What a teacher's JSON says of its making."""
    before = {} if recipe.initial is None else store.about_float(recipe.initial)
    return {
        "dataset": dataset.name,
        "images": dataset.digest,
        "classes": list(dataset.classes),
        "architecture": recipe.architecture,
        "recipe": asdict(recipe),
        "epochs": before.get("epochs", 0) + recipe.epochs,
        "command": " && ".join(part for part in (before.get("command"), command) if part),
        "float_accuracy": found.float_,
        "int8_accuracy": found.int8,
        "scales": found.chosen,
        "validation_accuracy_by_scales": found.by_scales,
    }


def main(argv: list[str] | None = None) -> int:
    """Trains, quantises and writes one teacher; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    return exit_status(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> None:
    description = "Trains a float teacher, and writes it in float and in INT8."
    given = options.parse(Command, "python -m approx_env.training", description, argv, _contradictions)
    device = _device(given.device)
    precision = given.precision
    if precision == "auto":
        precision = "bf16" if bf16_in_hardware(device) else "float32"
    recipe = Recipe(**{entry.name: getattr(given, entry.name) for entry in fields(Recipe)} | {"precision": precision})
    dataset = data.load(given.dataset, given.data_dir)
    stem = Path(given.output) / store.stem_of(models.name_of(given.model), dataset.name)
    _check(given, recipe, dataset, stem)
    memory.keep_freed_memory()
    if recipe.epochs or recipe.qat_epochs:
        print(f"training on {device}, {torch.get_num_threads()} threads, {precision}", flush=True)
    if _engine() == "portable":
        print("this CPU has no AVX2: INT8 accuracies are measured by the portable engine, slowly", flush=True)
    with Journal(stem) as journal:
        told = {"device": device, "observe": journal.epoch}
        module = train(given.model, dataset, recipe, _beside(stem, "checkpoint"), **told)
        command = shlex.join(["python", "-m", "approx_env.training", *argv])
        write_teachers(stem, given.model, module, dataset, recipe, command=command, **told)


def _check(given: Command, recipe: Recipe, dataset: data.Dataset, stem: Path) -> None:
    """Whatever would end the command after its epochs ends it now; makes the output's folder."""
    module = begun(given.model, dataset, recipe)
    sized = dataset.sized(traits(module).image_size)
    for split in ("calibration", "validation", "test"):
        sized.load(split)
    if own.parsed(given.model):
        _check_own(given, module, sized)
    for kind in ("float", "int8"):
        _check_replaceable(_beside(stem, f"{kind}.json"), dataset)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        longest = _beside(stem, "float.safetensors.tmp")
        longest.touch()
        longest.unlink()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise InputError(f"--output {stem.parent} cannot be written ({error}): choose another folder") from error


def _check_own(given: Command, module: nn.Module, dataset: data.Dataset) -> None:
    """Raises InputError, with every problem, if the network has no INT8 counterpart; tells what was left out."""
    about = traits(module)
    few, _ = dataset.load("calibration", 1)
    quantize.quantize(
        module, few, model=models.name_of(given.model), classes=dataset.classes, layers=about.layers,
        attention=about.attention, standardised=about.standardised,
    )  # fmt: skip
    if note := getattr(module, "note", ""):
        print(f"note: {note}")


def _check_replaceable(path: Path, dataset: data.Dataset) -> None:
    """Raises InputError if there is a teacher that knows other classes or other images, or something else."""
    try:
        about = json.loads(path.read_text()) if os.path.lexists(path) else {}
        classes, images = about.get("classes", []), about.get("images")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{path} is in the way and no teacher: move it, or choose another --output") from error
    if about and classes != list(dataset.classes):
        raise InputError(f"{path} is a teacher of other classes ({_few(classes)}): move it, or choose another --output")
    if images not in (None, dataset.digest):  # teachers of old do not know their images
        raise InputError(
            f"{path} was trained on other images, of a dataset that is called {dataset.name} as well: move it, or "
            "choose another --output"
        )


def _few(classes: Any) -> str:
    return ", ".join(map(str, classes[:10])) if isinstance(classes, list) else str(classes)


def _engine() -> str:
    """What INT8 networks run on here."""
    return "vector" if convolution.available() else "portable"


def _contradictions(given: Command, names: set[str]) -> Iterator[tuple[set[str], str]]:
    yield from data.contradictions(given.dataset, names)
    try:
        models.check_options(given.model, **given.architecture)
    except InputError as error:
        for problem in error.problems:
            yield {"model", "sr", "pct3x3", "batch_norm", "dropout"}, problem
    is_own = own.parsed(given.model) is not None
    if given.small_epochs and (is_own or not models.outline(given.model).resizable):
        yield {"model", "small_epochs"}, f"--small-epochs: {given.model} reads one image size only, leave it out"
    if given.small_epochs > given.epochs:
        text = f"--small-epochs must be at most --epochs, got {given.small_epochs} of {given.epochs}"
        yield {"epochs", "small_epochs"}, text
    yield from _of_weights(given, is_own)
    if given.device == "cuda" and not torch.cuda.is_available():
        yield {"device"}, "--device cuda: torch sees no GPU here, use --device cpu"


def _of_weights(given: Command, is_own: bool) -> Iterator[tuple[set[str], str]]:
    """What is wrong with the options that say what weights to begin from."""
    if given.initial is not None and is_own:
        text = f"--initial is for networks of ours: give {given.model} its weights by --weights"
        yield {"model", "initial"}, text
    if given.weights is not None and given.initial is not None:
        yield {"weights", "initial"}, "--weights says what weights to begin from, and so does --initial: leave one out"
    if given.weights is not None and given.model.endswith(".onnx"):
        yield {"weights", "model"}, f"--weights: {given.model} holds its weights itself: leave it out"
    if not (given.epochs or is_own or given.weights or given.initial):
        text = f"--epochs 0 trains nothing, and {given.model} has fresh weights: name others by --weights or --initial"
        yield {"model", "epochs"}, text
    if (given.mean is None) != (given.std is None):
        yield {"mean", "std"}, "--mean and --std belong together: give both, or leave both out"
    if given.mean is not None and not (is_own or given.weights):
        yield {"mean", "model", "weights"}, f"--mean and --std are of given weights, and {given.model} has fresh ones"


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked
