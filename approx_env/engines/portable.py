"""The engine for any device: the same integers, as floats.

Codes up to 255 and int8 weights are exact in float32 and TF32, and so are their products and sums below 2**24. Where
a sum could be larger, the input channels are taken in parts, which are added in float64. Requantisation is in float64
as well, where every product of a sum and a multiplier is exact. Each engine proves its codes when it is built.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from approx_env import tap
from approx_env.engines import reference
from approx_env.engines.base import Engine, in_order, mean
from approx_env.errors import InputError
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    HALF,
    SHIFT,
    Addition,
    AveragePool,
    Concatenation,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Node,
    ScaledAddition,
    Weighted,
)

LARGEST_EXACT = 2**24  # integers up to here are exact in float32
PROOF_IMAGES = 8


class PortableEngine(Engine):
    """An INT8 network made ready to run on `device`.

    Raises:
        InputError: there is no such device, or its convolutions are not exact.
    """

    chunk = 256

    def __init__(
        self,
        network: Network,
        readers: Sequence[cost.Reader] = (),
        observed: Collection[str] = (),
        device: str | torch.device = "cpu",
    ):
        super().__init__(network, readers, observed)
        self.device = available_device(device)
        weighted = [node for node in network.nodes if isinstance(node, Weighted)]
        self._weights = {node.name: self._parts(node) for node in weighted}
        self._affine = {node.name: self._affine_of(node) for node in weighted}
        for node in weighted:
            self._prove(node)

    def _parts(self, node: Weighted) -> list[torch.Tensor]:
        """The node's weights as floats, in as many parts of a group's input channels as keep sums below 2**24."""
        zero_point = self.network.zero_point(node.inputs[0])
        largest = max(zero_point, tap.HIGHEST_CODE - zero_point) * np.abs(node.weight.astype(np.int64))
        from_each = largest.reshape(*node.weight.shape[:2], -1).sum(2).max(0)  # input channel, at most
        begins, total = [0], 0
        for channel, most in enumerate(from_each):
            total += most
            if total > LARGEST_EXACT:
                begins.append(channel)
                total = most
        weight = torch.from_numpy(node.weight.astype(np.float32)).to(self.device)
        return [in_order(weight[:, first:last]) for first, last in pairwise([*begins, weight.shape[1]])]

    def _affine_of(self, node: Weighted) -> list[torch.Tensor]:
        """The node's bias and multiplier, on the device, as they go with its output."""
        shape = (-1, *[1] * (node.weight.ndim - 2))
        numbers = (torch.from_numpy(values.astype(np.float64)) for values in (node.bias, node.multiplier))
        return [number.to(self.device).view(shape) for number in numbers]

    def _sums(self, node: Weighted, x: torch.Tensor) -> torch.Tensor:
        """The sums of products as float64."""
        x = (x - self.network.zero_point(node.inputs[0])).unflatten(1, (node.groups, -1))
        total, first = None, 0
        for weight in self._weights[node.name]:
            part = x[:, :, first : first + weight.shape[1]].flatten(1, 2)
            with _exact_products():
                sums = reference.products(node, part, weight)
            total = sums.double() if total is None else total + sums
            first += weight.shape[1]
        return total

    def _prove(self, node: Weighted) -> None:
        """Compares what comes of extreme codes with the reference, on the CPU."""
        generator = torch.Generator().manual_seed(0)
        shape = self.network.shapes[node.inputs[0]]
        codes = torch.randint(0, 256, (PROOF_IMAGES, *shape), generator=generator).float()
        codes[0] = tap.HIGHEST_CODE
        found = self._weighted(node, in_order(codes.to(self.device))).cpu().numpy().astype(np.int64)
        expected = reference.weighted(self.network, node, codes.numpy())
        if not np.array_equal(found, expected):
            raise InputError(
                f"the portable engine on {self.device} must give exact codes, and those of '{node.name}' differ by up "
                f"to {np.abs(found - expected).max()}: use another device, or --engine vector"
            )

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        return in_order(images.to(self.device).float())

    def _run(self, segment: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for node in self._segments[segment]:
            tensors = tensors | {node.name: self._apply(node, tensors)}
        return tensors

    def _apply(self, node: Node, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = [tensors[name] for name in node.inputs]
        match node:
            case Weighted():
                return self._weighted(node, inputs[0])
            case MaxPool():
                return self._max_pool(inputs[0], node)
            case Concatenation():
                return torch.cat(inputs, 1)
            case Addition():
                return self._add(*inputs)
            case ScaledAddition():
                return self._add_scaled(*inputs, node.multiplier)
            case Flatten():
                return inputs[0].contiguous().flatten(1)
            case AveragePool():
                return self._average_pool(inputs[0], node)
            case GlobalAveragePool():
                return self._average(inputs[0], codes=node.inputs[0] in self.network.scales)
        raise NotImplementedError(type(node).__name__)

    @staticmethod
    def _average_pool(x: torch.Tensor, node: AveragePool) -> torch.Tensor:
        """The mean of each window, halves rounded up."""
        total = F.avg_pool2d(x.double(), node.kernel, node.stride, divisor_override=1)  # exact
        return in_order(mean(total, node.kernel**2).to(x.dtype))

    @staticmethod
    def _average(x: torch.Tensor, codes: bool) -> torch.Tensor:
        """The mean over space of codes, halves rounded up, or the sum over space of logits."""
        total = x.sum((2, 3), dtype=torch.float64)  # exact
        return mean(total, x.shape[2] * x.shape[3]).to(x.dtype) if codes else total

    def _weighted(self, node: Weighted, x: torch.Tensor) -> torch.Tensor:
        return self._requantised(node, self._sums(node, x), *self._affine[node.name])

    @staticmethod
    def _requantised(node: Weighted, sums: torch.Tensor, bias: torch.Tensor, multiplier: torch.Tensor) -> torch.Tensor:
        """Codes or logits of sums of products; all but the codes are float64."""
        value = (sums + bias) * multiplier  # an integer below 2**53
        if node.logits:
            return value.clamp(min=0) if node.relu else value
        return _codes(value)

    def _max_pool(self, x: torch.Tensor, node: MaxPool) -> torch.Tensor:
        height, width = self.network.shapes[node.name][1:]
        return F.max_pool2d(x, node.kernel, node.stride, ceil_mode=node.ceil)[:, :, :height, :width]

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a + b).clamp(max=tap.HIGHEST_CODE)

    def _add_scaled(self, a: torch.Tensor, b: torch.Tensor, multiplier: np.ndarray) -> torch.Tensor:
        first, second = multiplier.tolist()
        return _codes(a.double() * first + b.double() * second)

    def _approximate(self, site, exact, images, tensors, codes, counts):
        approximated = self._tap(exact, images, codes)
        energy = self._energy(approximated) if site in self.network.attention else None
        tensors = self._run(self.network.layers.index(site) + 1, tensors | {site: approximated})
        for reader in self._readers:
            if reader.layer == site:
                self._tally(tensors[reader.tensor], codes, reader.weights, counts)
        return tensors, energy

    @staticmethod
    def _tap(x: torch.Tensor, images: int, codes: np.ndarray) -> torch.Tensor:
        batches = x.unflatten(0, (-1, images))
        t1, v1, t2, v2, tmax = torch.from_numpy(codes).to(x.device, torch.float32).T.reshape(5, -1, *[1] * x.dim())
        y = torch.where(batches <= tmax, v2, batches)
        y = torch.where(batches <= t2, v1, y)
        return in_order(torch.where(batches <= t1, 0.0, y).flatten(0, 1))

    def _tally(self, x, codes, weights, counts):
        x = x.unflatten(0, (len(codes), -1))
        places = (1, 1, 1, *x.shape[3:]) if x.dim() == 5 else (1, 1, 1)
        uses = torch.from_numpy(weights).to(self.device, torch.float64).view(places)
        v1, tmax = torch.from_numpy(codes[:, [1, 4]]).to(self.device).T.reshape(2, -1, *[1] * (x.dim() - 1))
        up_to = [((x <= limit) * uses).flatten(1).sum(1) for limit in (0, v1, tmax, tap.HIGHEST_CODE)]
        cumulative = torch.stack(up_to, 1).cpu().numpy().astype(np.int64)
        counts += np.diff(cumulative, axis=1, prepend=0)

    def _look_up(self, x, values):
        return in_order(torch.from_numpy(values).to(self.device, torch.float32)[x.long()])

    def _histogram(self, x, weights):
        uses = torch.from_numpy(weights).to(self.device, torch.float64).view(1, 1, *x.shape[2:])
        products = uses.expand(x.shape).reshape(-1)
        return torch.bincount(x.long().reshape(-1), products, 256).cpu().numpy().astype(np.int64)  # exact below 2**53

    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        squares = x.double() ** 2
        return (squares.sum(1).flatten(1) if x.dim() == 4 else squares).long()


def _codes(value: torch.Tensor) -> torch.Tensor:
    """Codes of whole numbers in float64, in units of 1 / 2**16."""
    return in_order(((value + HALF) / (1 << SHIFT)).floor().clamp(0, tap.HIGHEST_CODE).float())


def available_device(name: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        InputError: this torch does not have it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device must be one that torch has here, as cpu or cuda, got {name} ({error})") from error
    return device


def _exact_products():
    """Lets cuDNN use TF32, in which the products are exact, and so its matrix kernels instead of transforms."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)
