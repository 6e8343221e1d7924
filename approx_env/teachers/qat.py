"""Quantisation-aware training: the INT8 network in float, with rounding that gradients pass through.

Weights are rounded as the quantiser rounds them (per output channel, pair-safe), activations by scales that are
trained along. Source: Jacob et al., CVPR 2018, section 3 (fake quantisation with batch norm folded); Esser et al.,
'Learned step size quantization', ICLR 2020, eq. 1 to 5.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from approx_env.int8 import quantize
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ScaledAddition,
    Site,
)
from approx_env.int8.quantize import Draft
from approx_env.tap import HIGHEST_CODE


class FakeQuantised(nn.Module):
    """A draft as a float module `(n, c, h, w) float -> (n, classes) float` whose weights and scales can be trained."""

    def __init__(self, draft: Draft):
        super().__init__()
        self._draft = draft
        weighted = {name: parts for name, parts in draft.parts.items() if "float_weight" in parts}
        self._index = {name: str(position) for position, name in enumerate(weighted)}  # parameters' names have no dots
        self.weights, self.biases = (
            nn.ParameterDict(
                {self._index[name]: torch.tensor(parts[part], dtype=torch.float32) for name, parts in weighted.items()}
            )
            for part in ("float_weight", "float_bias")
        )
        shared = sorted({group for group in draft.sharing.values() if group not in (None, INPUT)})
        self._group = {group: str(position) for position, group in enumerate(shared)}
        self.log_scales = nn.ParameterDict(
            {self._group[group]: torch.tensor(float(np.log(draft.scales[group]))) for group in shared}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = {INPUT: x}
        for name, parts in self._draft.parts.items():
            tensors[name] = self._run(name, parts, [tensors[source] for source in parts["inputs"]])
        return tensors[name]

    def draft(self) -> Draft:
        """The draft with the weights and scales as they are now."""
        scales = {name: self._scale(name) for name in self._draft.scales}
        parts = {}
        for name, old in self._draft.parts.items():
            parts[name] = dict(old)
            if name in self._index:
                index = self._index[name]
                parts[name]["float_weight"] = self.weights[index].detach().double().cpu().numpy()
                parts[name]["float_bias"] = self.biases[index].detach().double().cpu().numpy()
        return replace(self._draft, parts=parts, scales=scales)

    def _run(self, name: str, parts: dict, inputs: list[torch.Tensor]) -> torch.Tensor:
        kind, x = parts["kind"], inputs[0]
        if kind in (Convolution, Linear):
            weight, bias = self._rounded_weight(name, parts)
            if kind is Convolution:
                x = F.conv2d(x, weight, bias, parts["stride"], parts["padding"], groups=parts["groups"])
            else:
                x = F.linear(x, weight, bias)
            return self._rounded(name, F.relu(x) if parts["relu"] else x)
        if kind is MaxPool:
            return F.max_pool2d(x, parts["kernel"], parts["stride"], ceil_mode=parts["ceil"])
        if kind is AveragePool:
            return self._rounded(name, F.avg_pool2d(x, parts["kernel"], parts["stride"]))
        if kind in (Addition, ScaledAddition):
            return self._rounded(name, inputs[0] + inputs[1])
        if kind is Concatenation:
            return torch.cat(inputs, 1)
        if kind is GlobalAveragePool:
            return self._rounded(name, x.mean((2, 3)))
        if kind is Flatten:
            return x.flatten(1)
        if kind is Site:
            return x
        raise NotImplementedError(kind.__name__)

    def _rounded_weight(self, name: str, parts: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as their integers and scales give them; gradients pass as if they were not rounded."""
        weight, bias = self.weights[self._index[name]], self.biases[self._index[name]]
        plain = weight.detach().double().cpu().numpy()
        input_scale, scale = self._scale(parts["inputs"][0]), self._scale(parts.get("added_to", name))
        scale = quantize.logit_scale(plain, input_scale) if scale is None else scale
        step = quantize.requantisation_step(scale, input_scale)
        codes, multiples = quantize.quantize_weight(plain, step)
        rounded = codes * (multiples * step).reshape(-1, *[1] * (weight.dim() - 1))
        unit = torch.from_numpy(input_scale * step * multiples).to(bias)
        weight = weight + (torch.from_numpy(rounded).to(weight) - weight).detach()
        return weight, _rounded(bias / unit) * unit

    def _scale(self, name: str) -> float | None:
        """The scale of a tensor of codes as it is now; None of logits."""
        group = self._draft.sharing[name]
        if group not in self._group:
            return self._draft.scales[name]
        return min(self._log_scale(group).exp().item(), self._draft.limits.get(group, math.inf))

    def _log_scale(self, group: str) -> torch.Tensor:
        """Of tensors that share a scale, no larger than a ReLU6 allows; gradients pass as if it were not cut."""
        scale = self.log_scales[self._group[group]]
        highest = math.log(self._draft.limits.get(group, math.inf))
        return scale + (scale.clamp(max=highest) - scale).detach()

    def _rounded(self, name: str, x: torch.Tensor) -> torch.Tensor:
        group = self._draft.sharing[name]
        if group is None:
            return x
        if group == INPUT:  # pixels have a sign
            return _rounded(x / self._draft.scales[INPUT]) * self._draft.scales[INPUT]
        scale = self._log_scale(group)
        # Every activation pulls at its scale; the mean over them keeps that pull in step with the weights' gradients.
        scale = _scaled_gradient(scale, (x[0].numel() * HIGHEST_CODE) ** -0.5).exp()
        return _rounded(torch.clamp(x / scale, 0, HIGHEST_CODE)) * scale


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Rounds, halves up as the INT8 network does; gradients pass as if it did not."""
    return x + ((x + 0.5).floor() - x).detach()


def _scaled_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    return (x - x * factor).detach() + x * factor
