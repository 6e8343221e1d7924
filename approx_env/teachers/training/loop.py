"""Trains a float module, or one with rounded weights, from its checkpoint if there is one."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.v2 import CutMix
from torchvision.transforms.v2 import functional as transforms

from approx_env import data
from approx_env.errors import InputError
from approx_env.int8 import quantize
from approx_env.teachers import models, store
from approx_env.teachers.augment import augment, flips
from approx_env.teachers.checkpoint import Checkpoint
from approx_env.teachers.models.blocks import traits
from approx_env.teachers.models.own import load_weights, origin
from approx_env.teachers.models.pixels import absorb
from approx_env.teachers.muon import Muon
from approx_env.teachers.qat import FakeQuantised
from approx_env.teachers.training.recipe import LEARNING_RATES, Recipe

Predict = Callable[[np.ndarray], torch.Tensor]
Images = tuple[np.ndarray, np.ndarray]  # pixels and labels of a split

MOMENTUM = 0.9
WEIGHT_DECAYS = {"muon": 0.01, "sgd": 5e-4}  # Muon's is decoupled
WARM_UP = 0.2  # share of the steps in which the learning rate rises
CLIP_NORM = 1.0
QAT_LEARNING_RATE = 2e-3


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
) -> nn.Module:
    """Trains `model_name` on the train split, from the checkpoint if there is one, and returns it in eval mode.

    Args:
        model_name: as `models.build` takes it.
        observe: is told of every epoch: `stage`, `epoch`, `loss`, `validation_accuracy`, `learning_rate`, `seconds`,
            `input_seconds`.

    Raises:
        InputError: the checkpoint was made by another model, dataset or recipe; errors of `begun`.
    """
    torch.manual_seed(recipe.seed)
    model = begun(model_name, dataset, recipe)
    files = origin(model_name, recipe.weights)  # another file may have come to the same path
    identity = _identity(model_name, dataset, recipe) | {name.partition("_")[0]: files[name] for name in files}
    model = model.to(device, memory_format=torch.channels_last)
    about = traits(model)
    dataset = dataset.sized(about.image_size)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    highest, decay = recipe.lr or LEARNING_RATES[recipe.optimizer], WEIGHT_DECAYS["sgd"]
    optimizers = {}
    if recipe.optimizer == "muon":
        optimizers["muon"] = Muon(decayed[:-1], highest, MOMENTUM, WEIGHT_DECAYS["muon"])
        decayed, highest = decayed[-1:], recipe.head_lr
    groups = [{"params": decayed, "weight_decay": decay}, {"params": vectors}]
    optimizers["sgd"] = torch.optim.SGD(groups, highest, momentum=MOMENTUM, nesterov=True)
    del identity["qat_epochs"]  # a finished float training may be carried on with any number of them
    stage = _Stage("float", model, optimizers, recipe.epochs, recipe.small_epochs, Checkpoint(checkpoint, identity))
    return _fit(stage, recipe, dataset, about.standardised, observe).eval()


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
    identity = _identity(draft.header["model"], dataset, recipe) | {"weights in float": _digest(draft)}
    stage = _Stage("QAT", model, optimizers, recipe.qat_epochs, 0, Checkpoint(checkpoint, identity))
    return _fit(stage, replace(recipe, ema=0.0), dataset, draft.header["standardised"], observe).draft()


def _identity(model: str, dataset: data.Dataset, recipe: Recipe) -> dict[str, Any]:
    """Whose checkpoint it is. The dataset is known by its content: two folders may have one name."""
    return {"model": model, "dataset": dataset.name, "images": dataset.digest} | asdict(recipe)


def _digest(draft: quantize.Draft) -> str:
    """SHA-256 of a draft's weights and biases."""
    whole = hashlib.sha256()
    for parts in draft.parts.values():
        for name in ("float_weight", "float_bias"):
            if name in parts:
                whole.update(np.ascontiguousarray(parts[name]).tobytes())
    return whole.hexdigest()


def begun(model_name: str, dataset: data.Dataset, recipe: Recipe) -> nn.Module:
    """The network as its training begins: with fresh weights, or with those that the recipe names.

    Raises:
        InputError: the network cannot be made (see `models.build`), or these weights are not for it.
    """
    model = models.build(model_name, len(dataset.classes), **recipe.architecture)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    if recipe.initial is not None:
        try:
            model.load_state_dict(store.read_float(recipe.initial).state_dict())
        except RuntimeError as error:
            raise InputError(
                f"--initial {recipe.initial} holds another network: name a float teacher of the same one"
            ) from error
    if recipe.mean is not None:
        absorb(model, recipe.mean, recipe.std)
    return model


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
