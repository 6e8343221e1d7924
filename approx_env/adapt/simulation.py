"""An INT8 network under TAP as a float module that computes the same integers, and through which gradients pass.

Weights, biases and multipliers are float parameters near integers; each pass rounds them. Codes are rounded and
approximated. Rounding and TAP pass the gradient as if they were not there; the cut at 0 and 255 passes none.
Source: Bengio et al., arXiv:1308.3432, the straight-through estimator.

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
from approx_env.engines.base import in_order
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    HIGHEST_MULTIPLIER,
    HIGHEST_PAIR,
    HIGHEST_WEIGHT,
    INPUT,
    SHIFT,
    Addition,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Node,
    Site,
    Weighted,
)

Configuration = Mapping[str, tuple[Sequence[int], int]]  # layer -> (t1, v1, t2, v2) and tmax


class Simulation(nn.Module):
    """A student in float.

    Args:
        network: whose numbers it starts from.
        configuration: codes and tmax by layer; a layer that is missing stays exact.

    Raises:
        ValueError: invalid codes.
    """

    def __init__(self, network: Network, configuration: Configuration):
        super().__init__()
        for codes, tmax in configuration.values():
            tap.check(codes, tmax)
        self._network, self._configuration = network, dict(configuration)
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
        x = data.standardise(pixels) if self._network.standardised else pixels
        return {INPUT: in_order(x.to(self.weights[0].device).float())}

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

    @torch.no_grad()
    def project(self) -> None:
        """Brings the weights back to where rounding makes them pair-safe: after each step of an optimizer."""
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
            case Flatten():
                return x.contiguous().flatten(1)
            case GlobalAveragePool():
                total, places = x.sum((2, 3), dtype=torch.float64), x.shape[2] * x.shape[3]
                if node.inputs[0] not in self._network.scales:
                    return total
                return _Instead.apply(total / places, ((total + places // 2) / places).floor()).float()
            case Site():
                known = self._configuration.get(node.name)
                return _Instead.apply(x, _approximated(x, *known)) if known else x
        raise NotImplementedError(type(node).__name__)

    def _weighted(self, node: Weighted, x: torch.Tensor) -> torch.Tensor:
        weight, bias, multiplier = self._numbers(node)
        if zero_point := self._network.zero_point(node.inputs[0]):
            x = x - zero_point
        shape = (-1, *[1] * (weight.dim() - 2))
        if isinstance(node, Convolution):
            sums = F.conv2d(x, in_order(weight), bias, node.stride, node.padding)
        else:
            sums = F.linear(x, weight, bias)
        if node.logits:
            value = sums.double() * multiplier.double().view(shape)
            return value.clamp(min=0) if node.relu else value
        return _Requantise.apply(sums, (multiplier / (1 << SHIFT)).view(shape))

    def _numbers(self, node: Weighted) -> list[torch.Tensor]:
        """Weight, bias and multiplier, rounded."""
        index = self._index[node.name]
        multiplier = (self._multipliers[index] * self.gains[index].exp()).clamp(1, HIGHEST_MULTIPLIER)
        return [_Instead.apply(x, x.round()) for x in (self.weights[index], self.biases[index], multiplier)]

    def _rounded(self, node: Weighted) -> Weighted:
        weight, bias, multiplier = (number.detach().double().cpu().numpy() for number in self._numbers(node))
        made = replace(node, weight=np.ascontiguousarray(weight, np.int8))
        return with_bias(with_multiplier(made, multiplier), bias)


def _parameter(values: np.ndarray) -> nn.Parameter:
    """Values as a parameter, in plain order: the state of an optimizer that comes from a checkpoint is in that order,
    and torch's fused Adam walks through both as they lie in memory."""
    return nn.Parameter(torch.from_numpy(values.astype(np.float32)))


def _approximated(x: torch.Tensor, codes: Sequence[int], tmax: int) -> torch.Tensor:
    """TAP of codes in float32."""
    t1, v1, t2, v2 = (float(code) for code in codes)
    y = torch.where(x <= tmax, v2, x)
    y = torch.where(x <= t2, v1, y)
    return torch.where(x <= t1, 0.0, y)


class _Instead(torch.autograd.Function):
    """Gives the second value and passes the gradient to the first."""

    @staticmethod
    def forward(ctx, smooth: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None


class _Requantise(torch.autograd.Function):
    """Codes of sums and a scale for each channel; one pass over memory less in each direction than autograd's own."""

    @staticmethod
    def forward(ctx, sums: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        value = sums * scale
        ctx.save_for_backward(value, scale)
        return (value + 0.5).floor_().clamp_(0, tap.HIGHEST_CODE)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        value, scale = ctx.saved_tensors
        gradient = gradient * ((value > 0) & (value < tap.HIGHEST_CODE))
        places = [axis for axis in range(value.dim()) if axis != 1]
        of_scale = (gradient * value).sum(places, keepdim=True)[0] / scale
        return gradient * scale, of_scale
