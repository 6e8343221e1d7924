"""Trains a float teacher, and writes it in float and in INT8: `python -m approx_env.training --help`.

The recipe, and where each part comes from:

- Muon for kernels and matrices (Jordan et al., 2024), SGD with Nesterov momentum for vectors and the last layer; or
  SGD for all (`--optimizer sgd`). At equal time on two epochs of CIFAR-10 (JPEG), SqueezeNet: Muon 68.9 %, SGD 60.4 %.
- One-cycle learning rate, linear up and linear down to nothing (Smith & Topin, arXiv:1708.07120), and no weight decay
  on vectors (He et al., arXiv:1812.01187, section 3.1).
- Label smoothing (Szegedy et al., CVPR 2016, section 7), shifts and alternating mirrors (`approx_env.augment`),
  optional cutout (DeVries & Taylor, arXiv:1708.04552), CutMix (Yun et al., ICCV 2019) and dropout; gradients clipped
  at norm 1 without batch norm.
- The first epochs may see images of three quarters of the side (`--small-epochs`; Touvron et al., NeurIPS 2019: a
  network trained on small images is tuned to larger ones in few epochs), which take half the time.
- The teacher may be an exponential moving average of the weights (`--ema`; Polyak & Juditsky, 1992; Tarvainen &
  Valpola, NeurIPS 2017), batch norm's statistics with it.
- Channels-last; bfloat16 autocast where the device multiplies it in hardware.
- Quantisation-aware epochs with batch norm folded (`--qat-epochs`, `approx_env.qat`).

A killed training, started again by the same command, goes on from its last finished epoch with the same random stream.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from approx_env.errors import InputError, exit_status, run_module

if __name__ == "__main__":  # before the rest is loaded
    sys.exit(run_module("approx_env.training"))

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.v2 import CutMix
from torchvision.transforms.v2 import functional as transforms

from approx_env import convolution, data, engines, memory, models, options, quantize, teacher
from approx_env.augment import augment, flips
from approx_env.checkpoint import Checkpoint
from approx_env.journal import Journal
from approx_env.muon import Muon
from approx_env.network import Network
from approx_env.options import integer, number, option, switch
from approx_env.qat import FakeQuantised

Predict = Callable[[np.ndarray], torch.Tensor]
Images = tuple[np.ndarray, np.ndarray]  # pixels and labels of a split

LEARNING_RATES = {"muon": 0.1, "sgd": 0.1}  # optimizer -> highest learning rate unless told
MOMENTUM = 0.9
WEIGHT_DECAYS = {"muon": 0.01, "sgd": 5e-4}  # Muon's is decoupled
WARM_UP = 0.2  # share of the steps in which the learning rate rises
CLIP_NORM = 1.0
QAT_LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Recipe:
    """What decides a teacher's weights, besides its model and dataset."""

    epochs: int = integer(12, "passes over the train split", 1)
    small_epochs: int = integer(0, "how many of them, the first, see images of 3/4 of the side", 0)
    qat_epochs: int = integer(0, "quantisation-aware passes afterwards", 0)
    batch_size: int = integer(128, "images a step", 2)
    optimizer: str = option("muon", "of the weights", choices=tuple(LEARNING_RATES))
    lr: float | None = number(None, "highest learning rate (default 0.1)", above=0, high=10)
    head_lr: float = number(0.1, "of the last layer and of vectors, beside Muon", above=0, high=10)
    label_smoothing: float = number(0.1, "share of the target spread over all classes", low=0, below=1)
    dropout: float = number(0.0, "share of features dropped before the classifier", low=0, below=1)
    cutout: int = integer(0, "side of the square covered in each training image, pixels", 0, high=1000)
    cutmix: float = number(0.0, "share of the batches whose images are pasted into one another", low=0, high=1)
    batch_norm: bool = switch(True, "batch norm")
    sr: float | None = number(None, "SqueezeNet's squeeze ratio (default: the model's own)", above=0, high=1)
    pct3x3: float | None = number(None, "SqueezeNet's share of 3x3 filters (default 0.5)", above=0, below=1)
    ema: float = number(0.0, "epochs that the average of the weights looks back over; 0: no average", low=0, high=1000)
    initial: str | None = option(
        None, "float teacher to begin from, a .float.json (default: fresh weights)", metavar="FILE"
    )
    precision: str = option("auto", "of products; auto: bf16 in hardware", choices=("auto", "float32", "bf16"))
    seed: int = integer(0, "of weights, order, augmentation and dropout", 0)

    @property
    def architecture(self) -> dict[str, Any]:
        """The options of `models.build`."""
        given = {"squeeze_ratio": self.sr, "pct3x3": self.pct3x3}
        given = {name: value for name, value in given.items() if value is not None}
        return {"batch_norm": self.batch_norm, "dropout": self.dropout, **given}


@dataclass(frozen=True)
class Command(Recipe):
    """Everything that the command line decides."""

    model: str = option("squeezenet", "network to train", choices=tuple(models.MODELS))
    dataset: str = option("digits", "images to train on", choices=data.DATASETS)
    data_dir: str | None = option(None, "folder of cifar10 (default data) or imagefolder", metavar="DIR")
    device: str = option("auto", "where to train; auto: cuda if there is one", choices=("auto", "cpu", "cuda"))
    output: str = option("teachers", "where teachers go", metavar="DIR")


def accuracy(predict: Predict, pixels: np.ndarray, labels: np.ndarray, batch_size: int = 128) -> float:
    """Share of images `(n, 3, h, w) uint8` in [0, 1] on which `predict`, which gives logits, agrees with the labels."""
    hits = 0
    for start in range(0, len(labels), batch_size):
        predicted = predict(pixels[start : start + batch_size]).argmax(1).numpy()
        hits += int((predicted == labels[start : start + batch_size]).sum())
    return hits / len(labels)


def predictor(module: nn.Module, standardised: bool = False) -> Predict:
    """What a float `module` in eval mode makes of images `(n, 3, h, w) uint8`: logits `(n, classes)`."""
    device = next(module.parameters()).device

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> torch.Tensor:
        ready = data.standardise(pixels) if standardised else pixels
        return module.eval()(data.normalise(ready).to(device)).cpu()

    return predict


def train(
    model_name: str,
    dataset: data.Dataset,
    recipe: Recipe,
    checkpoint: Path,
    *,
    device: str = "cpu",
    observe: Callable[[dict[str, Any]], None] = lambda record: None,
) -> models.Blocks:
    """Trains `model_name` on the train split, from the checkpoint if there is one, and returns it in eval mode.

    Args:
        observe: is told of every epoch: `stage`, `epoch`, `loss`, `validation_accuracy`, `learning_rate`, `seconds`,
            `input_seconds`.

    Raises:
        InputError: the checkpoint was made by another model, dataset or recipe; the initial teacher has other weights.
    """
    torch.manual_seed(recipe.seed)
    model = models.build(model_name, len(dataset.classes), **recipe.architecture)
    if recipe.initial is not None:
        _begin_from(recipe.initial, model)
    model = model.to(device, memory_format=torch.channels_last)
    dataset = dataset.sized(model.image_size)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    highest, decay = recipe.lr or LEARNING_RATES[recipe.optimizer], WEIGHT_DECAYS["sgd"]
    optimizers = {}
    if recipe.optimizer == "muon":
        optimizers["muon"] = Muon(decayed[:-1], highest, MOMENTUM, WEIGHT_DECAYS["muon"])
        decayed, highest = decayed[-1:], recipe.head_lr
    groups = [{"params": decayed, "weight_decay": decay}, {"params": vectors}]
    optimizers["sgd"] = torch.optim.SGD(groups, highest, momentum=MOMENTUM, nesterov=True)
    identity = _identity(model_name, dataset, recipe)
    del identity["qat_epochs"]  # a finished float training may be carried on with any number of them
    stage = _Stage("float", model, optimizers, recipe.epochs, recipe.small_epochs, Checkpoint(checkpoint, identity))
    return _fit(stage, recipe, dataset, model.standardised, observe).eval()


def train_quantised(
    draft: quantize.Draft,
    dataset: data.Dataset,
    recipe: Recipe,
    checkpoint: Path,
    *,
    device: str = "cpu",
    observe: Callable[[dict[str, Any]], None] = lambda record: None,
) -> quantize.Draft:
    """Trains a draft for `recipe.qat_epochs` with rounded weights and activations; arguments and errors of `train`."""
    model = FakeQuantised(draft).to(device)
    weights = [*model.weights.values(), *model.biases.values(), *model.log_scales.values()]
    optimizers = {"sgd": torch.optim.SGD(weights, QAT_LEARNING_RATE, momentum=MOMENTUM, nesterov=True)}
    identity = _identity(draft.header["model"], dataset, recipe)
    stage = _Stage("QAT", model, optimizers, recipe.qat_epochs, 0, Checkpoint(checkpoint, identity))
    return _fit(stage, replace(recipe, ema=0.0), dataset, draft.header["standardised"], observe).draft()


def _identity(model: str, dataset: data.Dataset, recipe: Recipe) -> dict[str, Any]:
    """Whose checkpoint it is. The dataset is known by its content: two folders may have one name."""
    return {"model": model, "dataset": dataset.name, "images": dataset.digest} | asdict(recipe)


def _begin_from(path: str, model: models.Blocks) -> None:
    weights = teacher.read_float(path).state_dict()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"--initial {path} holds another network: name a float teacher of the same one") from error


@dataclass(frozen=True)
class _Stage:
    """A module and how it is trained."""

    name: str
    module: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    epochs: int
    small_epochs: int
    checkpoint: Checkpoint


def _fit(stage: _Stage, recipe: Recipe, dataset: data.Dataset, standardised: bool, observe) -> nn.Module:
    """Trains the stage's module and returns what came out: the module itself, or the average of its weights."""
    stateful = {"network": stage.module} | stage.optimizers
    average, chosen = None, stage.module
    if recipe.ema:
        steps = recipe.ema * (dataset.size("train") // min(recipe.batch_size, dataset.size("train")))
        blend = get_ema_multi_avg_fn(math.exp(-1 / steps))
        average = AveragedModel(stage.module, multi_avg_fn=blend, use_buffers=True)
        stateful["average"], chosen = average, average.module
    first = stage.checkpoint.resume(stateful)
    if first == stage.epochs:
        return chosen
    images, held_out = dataset.load("train", whole=True), dataset.load("validation")
    for epoch in range(first, stage.epochs):
        started = time.perf_counter()
        record = _train_epoch(stage, recipe, _Batches(recipe, dataset, images, standardised), epoch, average)
        share = accuracy(predictor(chosen, standardised), *held_out)
        stage.checkpoint.save(epoch + 1, stateful)
        record |= {"validation_accuracy": share, "seconds": time.perf_counter() - started}
        observe({"stage": stage.name, "epoch": epoch + 1, "epochs": stage.epochs, **record})
    return chosen


def _train_epoch(
    stage: _Stage, recipe: Recipe, batches: _Batches, epoch: int, average: AveragedModel | None
) -> dict[str, float]:
    """One pass over the shuffled train split; all its randomness follows from the seed and the epoch."""
    stage.module.train()
    torch.manual_seed(_seed(recipe, epoch))  # dropout and CutMix draw from torch's global generator
    parameters = list(stage.module.parameters())
    device = parameters[0].device
    cutmix = CutMix(num_classes=batches.classes)
    total, steps = 0.0, 0
    for x, labels in batches.of(epoch, small=epoch < stage.small_epochs):
        share = _one_cycle(epoch * batches.count + steps, stage.epochs * batches.count)
        for optimizer in stage.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share
        if recipe.cutmix and torch.rand(()) < recipe.cutmix:
            x, labels = cutmix(x, labels)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = stage.module(x.to(device))
            loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=recipe.label_smoothing)
        stage.module.zero_grad(set_to_none=True)
        loss.backward()
        if not recipe.batch_norm:
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        for optimizer in stage.optimizers.values():
            optimizer.step()
        if average:
            average.update_parameters(stage.module)
        total, steps = total + loss.item(), steps + 1
    first = next(iter(stage.optimizers.values()))
    return {
        "loss": total / steps,
        "learning_rate": first.param_groups[0]["lr"],
        "input_seconds": batches.seconds,
    }


def _seed(recipe: Recipe, epoch: int) -> int:
    """An epoch's own seed; torch takes 63 bits."""
    return (recipe.seed * 100_003 + epoch) % 2**63


def _one_cycle(step: int, total: int) -> float:
    """Share of the highest learning rate in `step` of `total`: up for WARM_UP of them, then down, never 0."""
    done = (step + 1) / (total + 1)
    return done / WARM_UP if done < WARM_UP else (1 - done) / (1 - WARM_UP)


class _Batches:
    """The train split in shuffled, augmented batches, and the seconds that making them took."""

    def __init__(self, recipe: Recipe, dataset: data.Dataset, images: Images, standardised: bool):
        self._recipe, self._dataset, self._standardised = recipe, dataset, standardised
        self._pixels, self._labels = (torch.from_numpy(part) for part in images)
        self._size = min(recipe.batch_size, len(self._labels))
        self.count = len(self._labels) // self._size
        self.classes = len(dataset.classes)
        self.seconds = 0.0

    def of(self, epoch: int, *, small: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch: images `(n, 3, h, w) float` channels-last, labels `(n,) int64`."""
        recipe, side = self._recipe, self._dataset.image_size
        draw = torch.Generator().manual_seed(_seed(recipe, epoch))
        order = torch.randperm(len(self._labels), generator=draw)
        flip = flips(len(order), epoch, recipe.seed) & self._dataset.mirrored
        for position in range(self.count):
            started = time.perf_counter()
            chosen = order[position * self._size : (position + 1) * self._size]
            pixels = augment(self._pixels[chosen], side, flip[chosen], recipe.cutout, draw)
            if small:
                pixels = transforms.resize(pixels, [side * 3 // 4] * 2, antialias=True)
            x = data.normalise(data.standardise(pixels) if self._standardised else pixels)
            self.seconds += time.perf_counter() - started
            yield x, self._labels[chosen]


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
    module: models.Blocks,
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
    dataset = dataset.sized(module.image_size)
    drafts = _fitted(model_name, module.cpu(), dataset)
    if recipe.qat_epochs:
        told = {"device": device, "observe": observe}
        checkpoint = _beside(stem, "qat.checkpoint")
        drafts["quantisation-aware"] = train_quantised(drafts["MSE-optimal"], dataset, recipe, checkpoint, **told)
    networks = {name: draft.network() for name, draft in drafts.items()}
    found = _measured(module, networks, dataset)
    _tell(found)
    about = _about(dataset, recipe, found, command)
    teacher.write_float(_beside(stem, "float.json"), model_name, module, about)
    path = _beside(stem, "int8.json")
    teacher.write(path, networks[found.chosen], about)
    print(f"wrote {path}")


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


def _fitted(model_name: str, module: models.Blocks, dataset: data.Dataset) -> dict[str, quantize.Draft]:
    """The module in INT8, with scales fitted in each way there is."""
    calibration, _ = dataset.load("calibration")
    ways = {"MSE-optimal": quantize.mse_scale, "clipped maximum": quantize.clipped_maximum_scale}
    return {
        name: quantize.draft(
            module, calibration, model=model_name, classes=dataset.classes, layers=module.layers,
            attention=module.attention, standardised=module.standardised, scale_of=scale_of,
        )
        for name, scale_of in ways.items()
    }  # fmt: skip


def _measured(module: models.Blocks, networks: dict[str, Network], dataset: data.Dataset) -> _Accuracies:
    held_out = {split: dataset.load(split) for split in ("validation", "test")}
    predict = predictor(module, module.standardised)
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
    before = {} if recipe.initial is None else teacher.about_float(recipe.initial)
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
    precision = given.precision if given.precision != "auto" else _precision(device)
    recipe = Recipe(**{entry.name: getattr(given, entry.name) for entry in fields(Recipe)} | {"precision": precision})
    dataset = data.load(given.dataset, given.data_dir)
    stem = Path(given.output) / f"{given.model}-{dataset.name.replace(':', '-')}"
    _check(given, recipe, dataset, stem)
    memory.keep_freed_memory()
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
    sized = dataset.sized(models.outline(given.model).image_size)
    for split in ("calibration", "validation", "test"):
        sized.load(split)
    if recipe.initial is not None:
        _begin_from(recipe.initial, models.build(given.model, len(dataset.classes), **recipe.architecture))
    for kind in ("float", "int8"):
        _check_replaceable(_beside(stem, f"{kind}.json"), dataset)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        longest = _beside(stem, "float.safetensors.tmp")
        longest.touch()
        longest.unlink()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise InputError(f"--output {stem.parent} cannot be written ({error}): choose another folder") from error


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
        models.outline(given.model, **given.architecture)
    except InputError as error:
        for problem in error.problems:
            yield {"model", "sr", "pct3x3"}, problem
    if given.small_epochs and not models.outline(given.model).resizable:
        yield {"model", "small_epochs"}, f"--small-epochs: {given.model} reads one image size only, leave it out"
    if given.small_epochs > given.epochs:
        text = f"--small-epochs must be at most --epochs, got {given.small_epochs} of {given.epochs}"
        yield {"epochs", "small_epochs"}, text
    if given.device == "cuda" and not torch.cuda.is_available():
        yield {"device"}, "--device cuda: torch sees no GPU here, use --device cpu"


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def _precision(device: str) -> str:
    """bf16 where the device multiplies it in hardware."""
    hardware = torch.cuda.is_bf16_supported() if device == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if hardware else "float32"
