"""A search episode as it is plainly written in PyTorch: float32, NCHW, fake-quantised, TAP by `torch.where`.

It does the same job as `approx_env.scoring.evaluator`, from the same weights, with the teacher run again in
every episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from approx_env import data
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Node,
    ScaledAddition,
    Site,
    Weighted,
)
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Problem
from approx_env.tap import HIGHEST_CODE

BATCH = 128


@dataclass(frozen=True)
class Episode:
    """What one configuration scored."""

    accuracy: float  # share of images that the student gets right
    kd: float  # KD loss
    at: float  # AT loss, summed over the attention layers


class FloatReference:
    """Scores configurations with float32 tensors, one batch of images after the other."""

    def __init__(self, problem: Problem):
        self._problem, self._network = problem, problem.network
        self._images, self._labels = torch.from_numpy(problem.images), torch.from_numpy(problem.labels)
        self._weights = {
            node.name: self._dequantised(node) for node in self._network.nodes if isinstance(node, Weighted)
        }
        self._last_reader = {name: node for node in self._network.nodes for name in node.inputs}

    @torch.inference_mode()
    def evaluate(self, configuration: Configuration) -> Episode:
        """Runs teacher and student on all images."""
        reward, right, kd, at = self._problem.reward, 0, 0.0, 0.0
        for images, labels in zip(self._images.split(BATCH), self._labels.split(BATCH), strict=True):
            teacher, teacher_maps = self._forward(images, None)
            student, student_maps = self._forward(images, configuration)
            right += int((student.argmax(1) == labels).sum())
            temperature = reward.kd_temperature
            divergence = F.kl_div(
                F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1), reduction="sum"
            )
            kd += temperature**2 * float(divergence)
            at += sum(float(((a - b) ** 2).sum()) for a, b in zip(student_maps, teacher_maps, strict=True))
        count = len(self._labels)
        return Episode(right / count, kd / count, at / count)

    def _forward(
        self, images: torch.Tensor, configuration: Configuration | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits and attention maps of the student, or without a configuration of the teacher."""
        network = self._network
        pixels = data.standardise(images) if network.standardised else images
        values = {INPUT: (pixels.float() - network.input_zero_point) * network.input_scale}
        maps = []
        for node in network.nodes:
            inputs = [values.pop(name) if self._last_reader[name] is node else values[name] for name in node.inputs]
            if isinstance(node, Site):
                values[node.name] = self._approximate(node, inputs[0], configuration)
                if node.name in network.attention:
                    maps.append(_attention_map(values[node.name]))
            else:
                values[node.name] = self._apply(node, inputs)
        return values[network.nodes[-1].name], maps

    def _approximate(self, node: Site, x: torch.Tensor, configuration: Configuration | None) -> torch.Tensor:
        if configuration is None:
            return x
        layer = self._network.layers.index(node.name)
        return _tap(x, configuration[layer], self._problem.calibration.tmax[layer], self._network.scales[node.name])

    def _apply(self, node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = inputs[0]
        match node:
            case Weighted():
                weight, bias = self._weights[node.name]
                if isinstance(node, Convolution):
                    x = F.conv2d(x, weight, bias, node.stride, node.padding, groups=node.groups)
                else:
                    x = F.linear(x, weight, bias)
                x = F.relu_(x) if node.relu else x
                return x if node.logits else _fake_quantise(x, node.scale)
            case MaxPool():
                return F.max_pool2d(x, node.kernel, node.stride, ceil_mode=node.ceil)
            case Concatenation():
                return torch.cat(inputs, 1)
            case Addition() | ScaledAddition():
                return _fake_quantise(inputs[0] + inputs[1], self._network.scales[node.name])
            case Flatten():
                return x.flatten(1)
            case AveragePool():
                return F.avg_pool2d(x, node.kernel, node.stride)
            case GlobalAveragePool():
                return x.mean((2, 3))
        raise NotImplementedError(type(node).__name__)

    def _dequantised(self, node: Weighted) -> tuple[torch.Tensor, torch.Tensor]:
        weight, scale = (
            torch.from_numpy(node.weight).float(),
            torch.from_numpy(self._network.weight_scale(node)).float(),
        )
        bias = torch.from_numpy(node.bias) * scale * self._network.scales[node.inputs[0]]
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias


def _fake_quantise(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Rounds to the values that uint8 codes of `scale` have."""
    return torch.clamp(torch.round(x / scale), 0, HIGHEST_CODE) * scale


def _tap(x: torch.Tensor, codes: Sequence[int], tmax: int, scale: float) -> torch.Tensor:
    """TAP of fake-quantised values; limits lie half a code above theirs, where no value is."""
    t1, v1, t2, v2 = codes
    y = torch.where(x <= (tmax + 0.5) * scale, v2 * scale, x)
    y = torch.where(x <= (t2 + 0.5) * scale, v1 * scale, y)
    return torch.where(x <= (t1 + 0.5) * scale, 0.0, y)


def _attention_map(x: torch.Tensor) -> torch.Tensor:
    """Sum over channels of squares, flattened and normalised; of a linear layer the squares."""
    return F.normalize(x**2 if x.dim() == 2 else (x**2).sum(1).flatten(1), dim=1)
