"""Trains a student's weights, biases and multipliers under TAP, towards its exact teacher.

The loss is KD: no labels are needed. Teacher and student see the same train images, shifted and mirrored as in a
training. Weights are moved in units of their last place, by Adam, at a rate that falls along a cosine.
Sources: Hinton et al., arXiv:1503.02531 (KD); Kingma & Ba, arXiv:1412.6980 (Adam); Loshchilov & Hutter,
arXiv:1608.03983 (the cosine); Jacob et al., CVPR 2018, section 3 (training with simulated quantisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import CutMix

from approx_env.adapt.replay import Replayed
from approx_env.adapt.requantisation import with_numbers
from approx_env.adapt.simulation import Configuration, Simulation
from approx_env.engines import build as engines
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import Weighted
from approx_env.options import integer, number, switch
from approx_env.teachers.augment import augment, flips
from approx_env.teachers.checkpoint import Checkpoint
from approx_env.teachers.precision import bf16_in_hardware

BETAS = (0.9, 0.99)  # of Adam
BIAS_RATE = 20.0  # times the weights' rate: biases are in units of a product
GAIN_RATE = 0.01  # times the weights' rate: multipliers move by shares of themselves
CODE_RATE = 1.0  # times the weights' rate: codes move by codes


@dataclass(frozen=True)
class Recipe:
    """What decides a student's weights, besides teacher, start, codes and images."""

    epochs: float = number(1.0, "passes over the train split, also parts of one; 0: no training", low=0, high=1000)
    batch_size: int = integer(64, "images a step", 1)
    rate: float = number(0.03, "Adam's first rate, units of a weight's last place", above=0, high=10)
    temperature: float = number(2.0, "temperature of the KD loss, logits", above=0, high=1000)
    labels: bool = switch(False, "adds the cross entropy with the labels to the loss")
    learn_codes: bool = switch(False, "trains t1, v1, t2 and v2 of each layer, too")
    hold_exact: bool = switch(
        False, "lets tmax follow while codes are learnt, so that as many activations stay exact as at the start"
    )
    cutmix: float = number(0.0, "share of the steps whose images are pasted into one another", low=0, high=1)
    seed: int = integer(0, "of order, shifts and mirrors", 0)


class FineTuning:
    """A student on its way: `advance` takes one step, `student` gives what there is.

    Everything random in a step follows from the seed and the step. So a training that goes on from a checkpoint ends
    with the weights of an undisturbed one, on the same machine with the same number of threads.

    Args:
        teacher: the exact network.
        start: the student to begin with, as `correction.correct` makes it.
        configuration: codes and tmax by layer.
        images: pixels `(n, 3, h, w) uint8` as `Dataset.load(whole=True)` gives them, and labels `(n,) int64`.
        mirrored: whether a mirrored image keeps its class.
        engine: what the teacher runs on if `device` is the CPU, as `engines.build` takes it.
        device: where the student is trained, as torch names it.
    """

    def __init__(
        self,
        teacher: Network,
        start: Network,
        configuration: Configuration,
        images: tuple[np.ndarray, np.ndarray],
        recipe: Recipe,
        *,
        mirrored: bool = False,
        engine: str = "vector",
        device: str = "cpu",
    ):
        self._recipe, self._mirrored, self._device = recipe, mirrored, device
        self._side = teacher.input_shape[1]
        self._pixels, self._labels = (torch.from_numpy(part) for part in images)
        self._classes = len(teacher.classes)
        self.batch = min(recipe.batch_size, len(self._labels))
        self._epoch_steps = len(self._labels) // self.batch
        self._epoch = None, None  # and how it is shuffled
        self.done = 0  # steps
        self.steps = round(recipe.epochs * self._epoch_steps)
        if recipe.epochs:
            self.steps = max(1, self.steps)
        if device == "cpu":
            self._teacher = engines.build(teacher, engine).forward
        else:  # where an engine would wait for each batch
            self._teacher = Simulation(pool_first(teacher), {}).requires_grad_(False).to(device)
        self._start = start
        bf16 = bf16_in_hardware(device)
        self.precision = "bf16" if bf16 else "float32"  # of the products of gradients
        self._simulation = Simulation(pool_first(start), configuration, learn_codes=recipe.learn_codes, bf16=bf16).to(
            device
        )
        # Adam's own rate is that of a group in the first step.
        factors = {"weights": 1.0, "biases": BIAS_RATE, "gains": GAIN_RATE}
        groups = [
            {"params": list(getattr(self._simulation, name)), "factor": factor} for name, factor in factors.items()
        ]
        if recipe.learn_codes:
            groups.append({"params": [self._simulation.codes], "factor": CODE_RATE})
        if recipe.hold_exact:
            self._simulation.hold_exact(self._drawn()[0])
        self._step = self._taken
        if device != "cpu":  # a graph reads its rates from the device
            groups = [group | {"lr": torch.tensor(recipe.rate, device=device)} for group in groups]
            self._step = Replayed(self._taken)
        self._adam = torch.optim.Adam(groups, recipe.rate, BETAS, fused=True, capturable=device != "cpu")

    def advance(self) -> torch.Tensor:
        """Takes a step and returns the loss before it, `() float64` on the device."""
        share = (1 + math.cos(math.pi * self.done / self.steps)) / 2
        for group in self._adam.param_groups:
            rate = self._recipe.rate * group["factor"] * share
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        loss = self._step(*self._drawn())
        self.done += 1
        return loss

    def _taken(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Takes a step on these images, and returns its loss."""
        with torch.no_grad():
            wanted = self._teacher(pixels)
        logits = self._simulation(pixels)
        loss = kd_loss(logits, wanted, self._recipe.temperature)
        if self._recipe.labels:
            loss = loss + F.cross_entropy(logits, labels)
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        self._adam.step()
        self._simulation.project()
        return loss.detach()

    def student(self) -> Network:
        """The INT8 student as it is now.

        Raises:
            ValueError: its numbers have left what engines rely on.
        """
        found = {node.name: node for node in self._simulation.network().nodes if isinstance(node, Weighted)}
        return with_numbers(self._start, found)

    def configuration(self) -> Configuration:
        """Codes and tmax by layer, as they are now."""
        return self._simulation.configuration()

    def save(self, checkpoint: Checkpoint) -> None:
        """Keeps where it is; at least one step must be done."""
        checkpoint.save(self.done, self._stateful())

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint, if there is one.

        Raises:
            InputError: the file is no checkpoint, or one of another training.
        """
        self.done = checkpoint.resume(self._stateful())

    def _stateful(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        return {"student": self._simulation, "adam": self._adam}

    def _drawn(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels of the next step."""
        epoch, position = divmod(self.done, self._epoch_steps)
        order, flip = self._shuffled(epoch)
        chosen = order[position * self.batch : (position + 1) * self.batch]
        draw = self._generator(2 * self.done + 1)
        pixels = augment(self._pixels[chosen], self._side, flip[chosen], 0, draw)
        labels = self._labels[chosen]
        if self._recipe.cutmix:
            labels = F.one_hot(labels, self._classes).float()
            if torch.rand((), generator=draw) < self._recipe.cutmix:
                with torch.random.fork_rng(devices=()):  # CutMix draws from torch's global generator
                    torch.manual_seed(draw.initial_seed())
                    pixels, labels = CutMix()(pixels, labels)
        return pixels.to(self._device), labels.to(self._device)

    def _shuffled(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of an epoch's images, and which images it mirrors."""
        if self._epoch[0] != epoch:
            order = torch.randperm(len(self._labels), generator=self._generator(2 * epoch))
            self._epoch = epoch, (order, flips(len(order), epoch, self._recipe.seed) & self._mirrored)
        return self._epoch[1]

    def _generator(self, number: int) -> torch.Generator:
        """A stream of its own for each number; torch takes 63 bits."""
        return torch.Generator().manual_seed((self._recipe.seed * 1_000_003 + number) % 2**63)


def kd_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits `(n, classes)`, mean over images.

    The twin of `scoring.distill.kd_loss` that has gradients.
    """
    logs = [F.log_softmax(logits / temperature, 1) for logits in (student, teacher)]
    return temperature**2 * F.kl_div(*logs, log_target=True, reduction="batchmean")
