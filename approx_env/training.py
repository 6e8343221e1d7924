"""Trains a float teacher, and writes it in float and in INT8: `python -m approx_env.training --help`.

Recipe: SGD with Nesterov momentum 0.9 and weight decay 5e-4 under a one-cycle learning rate (Smith & Topin,
arXiv:1708.07120), random shifts by 4 pixels, mirroring where the dataset allows it, gradients clipped at norm 1
where there is no batch norm. A killed training, started again by the same command, goes on from its last finished
epoch with the same random stream.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn import functional as F

from approx_env import data, engine, models, quantize, teacher
from approx_env.errors import InputError, exit_status

Predict = Callable[[np.ndarray], torch.Tensor]

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARM_UP = 0.2  # share of the steps in which the learning rate rises
MAX_SHIFT = 4  # pixels
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """What decides a teacher's weights, besides its model and dataset."""

    epochs: int = 12
    batch_size: int = 128  # images a step
    learning_rate: float = 0.05  # the highest of the one-cycle schedule
    batch_norm: bool = True
    seed: int = 0

    def problems(self) -> list[str]:
        """Says what is wrong with each value, naming its flag."""
        found = []
        if self.epochs < 1:
            found.append(f"--epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 2:
            found.append(f"--batch-size must be at least 2, got {self.batch_size}")
        if not 0 < self.learning_rate <= 10:
            found.append(f"--lr must lie in (0, 10], got {self.learning_rate}")
        if self.seed < 0:
            found.append(f"--seed must be at least 0, got {self.seed}")
        return found


def augment(pixels: torch.Tensor, mirrored: bool, generator: torch.Generator) -> torch.Tensor:
    """Shifts each image `(n, 3, h, w) uint8` by up to 4 pixels over grey, and mirrors half of them if `mirrored`."""
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, [MAX_SHIFT] * 4, value=data.PIXEL_ZERO_POINT)
    shifts = torch.randint(0, 2 * MAX_SHIFT + 1, (2, count), generator=generator).tolist()
    crops = [image[:, y : y + height, x : x + width] for image, y, x in zip(padded, *shifts, strict=True)]
    images = torch.stack(crops)
    if mirrored:
        flip = torch.rand(count, generator=generator) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return images


def accuracy(predict: Predict, pixels: np.ndarray, labels: np.ndarray, batch_size: int = 128) -> float:
    """Share of images `(n, 3, h, w) uint8` in [0, 1] on which `predict`, which gives logits, agrees with the labels."""
    hits = 0
    for start in range(0, len(labels), batch_size):
        predicted = predict(pixels[start : start + batch_size]).argmax(1).numpy()
        hits += int((predicted == labels[start : start + batch_size]).sum())
    return hits / len(labels)


def predictor(module: nn.Module) -> Predict:
    """What a float `module`, in eval mode, makes of images `(n, 3, h, w) uint8`: logits `(n, classes)`."""

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> torch.Tensor:
        return module.eval()(data.normalise(pixels))

    return predict


def train(model_name: str, dataset: data.Dataset, recipe: Recipe, checkpoint: Path) -> nn.Module:
    """Trains `model_name` on the train split, from the checkpoint if there is one, and returns it in eval mode.

    Raises:
        InputError: the checkpoint was made by another model, dataset or recipe.
    """
    torch.manual_seed(recipe.seed)
    model = models.build(model_name, len(dataset.classes), batch_norm=recipe.batch_norm)
    model = model.to(memory_format=torch.channels_last)
    pixels, labels = (torch.from_numpy(part) for part in dataset.load("train"))
    held_out = dataset.load("validation")
    steps = max(1, len(labels) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    total = recipe.epochs * steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=total,
        pct_start=WARM_UP if WARM_UP * total != 1 else 2 * WARM_UP,  # OneCycleLR divides by WARM_UP * total - 1
        cycle_momentum=False,
    )
    identity = {"model": model_name, "dataset": dataset.name, **asdict(recipe)}
    stateful = {"network": model, "optimizer": optimizer, "schedule": schedule}
    first = _resume(checkpoint, identity, stateful)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{model_name} on {dataset.name}", total=total, completed=first * steps)
        for epoch in range(first, recipe.epochs):
            started = time.perf_counter()
            loss = _train_epoch(model, optimizer, schedule, pixels, labels, dataset.mirrored, recipe, epoch,
                                lambda: progress.advance(task))  # fmt: skip
            share = accuracy(predictor(model), *held_out)
            _save_checkpoint(checkpoint, {"identity": identity, "epoch": epoch + 1}, stateful)
            progress.console.print(
                f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:.4f}, validation accuracy {100 * share:.2f} %, "
                f"{time.perf_counter() - started:.0f} s",
                highlight=False,
            )
    return model.eval()


def _train_epoch(model, optimizer, schedule, pixels, labels, mirrored, recipe, epoch, advance) -> float:
    """One pass over the shuffled train split; all its randomness follows from the seed and the epoch."""
    model.train()
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    torch.manual_seed(recipe.seed * 100_003 + epoch)  # dropout draws from torch's global generator
    order = torch.randperm(len(labels), generator=generator)
    size = min(recipe.batch_size, len(labels))
    total, steps = 0.0, 0
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        x = data.normalise(augment(pixels[chosen], mirrored, generator))
        loss = F.cross_entropy(model(x), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not recipe.batch_norm:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        total, steps = total + loss.item(), steps + 1
        advance()
    return total / steps


def _resume(checkpoint: Path, identity: dict, stateful: dict) -> int:
    """Loads a checkpoint into `stateful` and returns the number of finished epochs (0 without one)."""
    if not checkpoint.exists():
        return 0
    try:
        saved = torch.load(checkpoint, weights_only=True)
    except Exception as error:  # torch raises whatever unpickling runs into
        raise InputError(
            f"{checkpoint} is no checkpoint of a training: remove it, or choose another --output"
        ) from error
    if saved["identity"] != identity:
        differing = [key for key in identity if saved["identity"].get(key) != identity[key]]
        raise InputError(
            f"{checkpoint} is an unfinished training with another {', '.join(differing)}: "
            "finish it, remove it, or choose another --output"
        )
    for name, part in stateful.items():
        part.load_state_dict(saved[name])
    print(f"resuming after epoch {saved['epoch']} from {checkpoint}", flush=True)
    return saved["epoch"]


def _save_checkpoint(path: Path, header: dict, stateful: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(header | {name: part.state_dict() for name, part in stateful.items()}, temporary)
    os.replace(temporary, path)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m approx_env.training", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="squeezenet", help=f"one of {', '.join(models.MODELS)} (%(default)s)")
    parser.add_argument("--dataset", default="digits", help=f"one of {', '.join(data.DATASETS)} (%(default)s)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of cifar10 or imagefolder")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="passes over the train split (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size, help="images a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=Recipe.learning_rate, help="highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of weights, order and dropout (%(default)s)")
    parser.add_argument("--batch-norm", action=argparse.BooleanOptionalAction, default=True, help="batch norm (on)")
    parser.add_argument("--output", default="teachers", metavar="DIR", help="where teachers go (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Trains, quantises and writes one teacher; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    return exit_status(lambda: _run(arguments(argv)))


def _run(options: argparse.Namespace) -> None:
    recipe = Recipe(options.epochs, options.batch_size, options.lr, options.batch_norm, options.seed)
    problems = recipe.problems()
    if options.model not in models.MODELS:
        problems.append(f"unknown model '{options.model}': --model must be one of {', '.join(models.MODELS)}")
    if problems:
        raise InputError(problems)
    dataset = data.load(options.dataset, options.data_dir)
    folder = Path(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written ({error}): choose another folder") from error
    stem = f"{options.model}-{dataset.name.replace(':', '-')}"
    model = train(options.model, dataset, recipe, folder / f"{stem}.checkpoint")
    write_teachers(folder / stem, options.model, model, dataset, recipe)


def write_teachers(stem: Path, model_name: str, module: nn.Module, dataset: data.Dataset, recipe: Recipe) -> None:
    """Quantises a trained `module` on the calibration split and writes `STEM.float.*` and `STEM.int8.*`.

    Accuracies on validation and test, of both, are measured, printed and kept in the JSON.
    """
    calibration, _ = dataset.load("calibration")
    quantised = quantize.quantize(
        module, calibration, model=model_name, classes=dataset.classes, layers=module.layers, attention=module.attention
    )
    about = {"dataset": dataset.name, "classes": list(dataset.classes), "recipe": asdict(recipe)}
    held_out = {split: dataset.load(split) for split in ("validation", "test")}
    for kind, predict in {"float": predictor(module), "INT8": engine.Engine(quantised).forward}.items():
        shares = {split: accuracy(predict, *part) for split, part in held_out.items()}
        about[f"{kind.lower()}_accuracy"] = shares
        print(f"{kind}: " + ", ".join(f"{share:.2%} on {split}" for split, share in shares.items()))
    teacher.write_float(stem.with_name(f"{stem.name}.float.json"), model_name, module, about)
    path = stem.with_name(f"{stem.name}.int8.json")
    teacher.write(path, quantised, about)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
