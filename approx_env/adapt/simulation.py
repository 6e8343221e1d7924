"""An INT8 network under TAP as a float module that computes the same integers, and through which gradients pass.

Weights, biases, multipliers and, if they are learnt, TAP's codes and tmax are float parameters near integers; each pass
rounds them. Activations are rounded and approximated. Rounding and TAP pass the gradient as if they were not there; the
cut at 0 and 255 passes none. `straight_through` has the operators, their sources, and what they cut besides.

Integers are exact in float32 while sums stay below 2**24, which those of real images do. `int8.nodes` says why the
product with a multiplier then gives the right code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from approx_env import data, tap
from approx_env.adapt.requantisation import with_bias, with_multiplier
from approx_env.adapt.straight_through import Approximate, Convolve, Instead, Requantise
from approx_env.engines.base import in_order, mean
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    HIGHEST_MULTIPLIER,
    HIGHEST_PAIR,
    HIGHEST_WEIGHT,
    INPUT,
    SHIFT,
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

Configuration = Mapping[str, tuple[Sequence[int], int]]  # layer -> (t1, v1, t2, v2) and tmax


class Simulation(nn.Module):
    """A student in float.

    Args:
        network: whose numbers it starts from.
        configuration: codes and tmax by layer; a layer that is missing stays exact.
        learn_codes: whether gradients reach t1, v1, t2 and v2. tmax stays, unless `hold_exact` is called.
        bf16: whether gradients of convolutions are products of bf16.

    Raises:
        ValueError: invalid codes.
    """

    def __init__(
        self, network: Network, configuration: Configuration, *, learn_codes: bool = False, bf16: bool = False
    ):
        super().__init__()
        for codes, tmax in configuration.values():
            tap.check(codes, tmax)
        self._network, self._bf16 = network, bf16
        self._rows = {name: row for row, name in enumerate(configuration)}  # of the codes
        codes = np.array([(*codes, tmax) for codes, tmax in configuration.values()]).reshape(-1, len(tap.WITH_TMAX))
        self.codes = _parameter(codes).requires_grad_(learn_codes)
        highest = np.where(codes[:, 4] < tap.HIGHEST_CODE, tap.HIGHEST_CODE - 1, tap.HIGHEST_CODE)  # tmax
        self.register_buffer("_highest", torch.from_numpy(highest).float(), persistent=False)
        self.register_buffer("_exact", None)  # share of each layer's codes that tmax is to leave exact
        nodes = [node for node in network.nodes if isinstance(node, Weighted)]
        self._index = {node.name: position for position, node in enumerate(nodes)}
        self.weights, self.biases, self._multipliers = (
            nn.ParameterList(_parameter(getattr(node, name)) for node in nodes)
            for name in ("weight", "bias", "multiplier")
        )
        self._multipliers.requires_grad_(False)
        # A multiplier is its first value times e to the power of its gain: steps are relative, as its effect is.
        self.gains = nn.ParameterList(torch.zeros(len(node.bias)) for node in nodes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images `(n, c, h, w) uint8` -> logits `(n, classes) float64`."""
        return self.outputs(pixels)[self._network.nodes[-1].name] * self._network.logit_scale

    def outputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every node's output by name: codes as float32, logits as whole numbers in float64."""
        return self.onwards(self.input(pixels))

    def input(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images as the first nodes read them, by name."""
        x = pixels.to(self.codes.device)
        return {INPUT: in_order((data.standardise(x) if self._network.standardised else x).float())}

    def onwards(self, tensors: Mapping[str, torch.Tensor], last: str | None = None) -> dict[str, torch.Tensor]:
        """`tensors` by name, and what follows from them: every node's output, or those up to node `last`."""
        tensors = dict(tensors)
        for node in self._network.nodes:
            if node.name not in tensors:
                tensors[node.name] = self._run(node, [tensors[name] for name in node.inputs])
            if node.name == last:
                break
        return tensors

    def network(self) -> Network:
        """The INT8 network with the numbers as they are now."""
        return replace(
            self._network,
            nodes=tuple(self._rounded(node) if node.name in self._index else node for node in self._network.nodes),
        )

    def configuration(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Codes and tmax by layer, as they are now."""
        rows = (self.codes + 0.5).floor().int().tolist()
        return {name: (tuple(codes), tmax) for name, (*codes, tmax) in zip(self._rows, rows, strict=True)}

    @torch.no_grad()
    def hold_exact(self, pixels: torch.Tensor) -> None:
        """Gives tmax a gradient that keeps the share of each layer's codes which it leaves exact on these images.

        A layer without a tail keeps tmax 255.
        """
        tensors = self.outputs(pixels)
        self._exact = torch.zeros_like(self.codes[:, 0])
        for name, row in self._rows.items():
            (before,) = self._network.by_name[name].inputs
            self._exact[row] = (tensors[before] > self.codes[row, 4]).float().mean()

    @torch.no_grad()
    def project(self) -> None:
        """Brings weights back to where rounding makes them pair-safe, and codes to where it makes them valid.

        It follows each step of an optimizer.
        """
        if self.codes.requires_grad:
            *four, tmax = self.codes.unbind(1)
            tmax.clamp_(4).clamp_(max=self._highest)
            lowest = torch.ones_like(tmax)
            for place, codes in enumerate(four):  # at least 1 apart, so that no two round to one
                codes.copy_(codes.minimum(tmax - (3 - place)).maximum(lowest))
                lowest = codes + 1
        for weight in self.weights:
            weight.clamp_(-HIGHEST_WEIGHT, HIGHEST_WEIGHT)
            second = weight[:, 1::2]
            first = weight[:, 0::2][:, : second.shape[1]]
            # Two roundings add at most 1 to a pair.
            excess = (first.abs() + second.abs() - (HIGHEST_PAIR - 1)).clamp_(min=0) * (first * second > 0) / 2
            first -= first.sign() * excess
            second -= second.sign() * excess

    def _run(self, node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = inputs[0]
        match node:
            case Weighted():
                return self._weighted(node, x)
            case MaxPool():
                height, width = self._network.shapes[node.name][1:]
                return F.max_pool2d(x, node.kernel, node.stride, ceil_mode=node.ceil)[:, :, :height, :width]
            case Concatenation():
                return torch.cat(inputs, 1)
            case Addition():
                return (x + inputs[1]).clamp(max=tap.HIGHEST_CODE)
            case ScaledAddition():
                first, second = node.multiplier.tolist()
                value = (x.double() * first + inputs[1].double() * second) / (1 << SHIFT)
                code = (value + 0.5).floor().clamp(0, tap.HIGHEST_CODE)
                return Instead.apply(value.clamp(0, tap.HIGHEST_CODE), code).float()
            case Flatten():
                return x.contiguous().flatten(1)
            case AveragePool():
                total, places = F.avg_pool2d(x.double(), node.kernel, node.stride, divisor_override=1), node.kernel**2
                return _mean(total, places)
            case GlobalAveragePool():
                total, places = x.sum((2, 3), dtype=torch.float64), x.shape[2] * x.shape[3]
                if node.inputs[0] not in self._network.scales:
                    return total
                return _mean(total, places)
            case Site():
                if node.name not in self._rows:
                    return x
                row = self._rows[node.name]
                codes, exact = self.codes[row], None if self._exact is None else self._exact[row]
                return Approximate.apply(x, Instead.apply(codes, (codes + 0.5).floor()), exact)
        raise NotImplementedError(type(node).__name__)

    def _weighted(self, node: Weighted, x: torch.Tensor) -> torch.Tensor:
        weight, bias, multiplier = self._numbers(node)
        if zero_point := self._network.zero_point(node.inputs[0]):
            x = x - zero_point
        if isinstance(node, Convolution):
            sides = (node.stride,) * 2, (node.padding,) * 2
            sums = Convolve.apply(x, in_order(weight), bias, *sides, node.groups, self._bf16)
        else:
            sums = F.linear(x, weight, bias)
        if node.logits:
            value = sums.double() * multiplier.double().view(-1, *[1] * (weight.dim() - 2))
            return value.clamp(min=0) if node.relu else value
        return Requantise.apply(sums, multiplier / (1 << SHIFT))

    def _numbers(self, node: Weighted) -> list[torch.Tensor]:
        """Weight, bias and multiplier, rounded."""
        index = self._index[node.name]
        multiplier = (self._multipliers[index] * self.gains[index].exp()).clamp(1, HIGHEST_MULTIPLIER)
        return [Instead.apply(x, x.round()) for x in (self.weights[index], self.biases[index], multiplier)]

    def _rounded(self, node: Weighted) -> Weighted:
        weight, bias, multiplier = (number.detach().double().cpu().numpy() for number in self._numbers(node))
        made = replace(node, weight=np.ascontiguousarray(weight, np.int8))
        return with_bias(with_multiplier(made, multiplier), bias)


def _mean(total: torch.Tensor, places: int) -> torch.Tensor:
    """`engines.base.mean`, with the gradient of the mean that is not rounded."""
    return Instead.apply(total / places, mean(total, places)).float()


def _parameter(values: np.ndarray) -> nn.Parameter:
    """Values as a parameter, in plain order: the state of an optimizer that comes from a checkpoint is in that order,
    and torch's fused Adam walks through both as they lie in memory."""
    return nn.Parameter(torch.from_numpy(values.astype(np.float32)))
