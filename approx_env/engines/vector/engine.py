"""The engine for x86 CPUs: uint8 codes, channels last, on the vector code of `convolution.py` and `kernels.py`.

One thread does all the work. Each CPU computes by the best instruction set that it has, and all compute the same
integers. An engine cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from approx_env.engines.base import Engine, in_order, order
from approx_env.engines.vector import convolution, grouped, kernels, simd
from approx_env.errors import InputError
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import Concatenation, MaxPool, Weighted


class VectorEngine(Engine):
    """An INT8 network made ready to run on this machine's CPU.

    Args:
        instructions: name of the instruction set, of `convolution.available()` (default: the best).

    Raises:
        InputError: this CPU has none that will do.
    """

    def __init__(
        self,
        network: Network,
        readers: Sequence[cost.Reader] = (),
        observed: Collection[str] = (),
        instructions: str | None = None,
    ):
        there = convolution.available()
        if not there:
            raise InputError("--engine vector needs an x86 CPU with AVX2, which this one is not: use --engine portable")
        super().__init__(network, readers, observed)
        self._packed = {
            node.name: self._pack(node, instructions or there[0])
            for node in network.nodes
            if isinstance(node, Weighted)
        }
        self._slices = self._find_slices()

    def _pack(self, node: Weighted, instructions: str) -> convolution.Packed | grouped.Grouped:
        zero_point = self.network.zero_point(node.inputs[0])
        if node.groups > 1:
            return grouped.Grouped(node, zero_point)
        return convolution.kind_of(node)(node, zero_point, instructions)

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    def _weighted(self, node: Weighted, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if node.logits:
            return self._logits(node, x)
        whole, offset = self._slices.get(node.name, (node.name, 0))
        if whole not in tensors:
            tensors[whole] = _buffer(len(x), self.network.shapes[whole])
        self._packed[node.name](_space_first(x), _space_first(tensors[whole]), offset)
        return tensors[whole][:, offset : offset + len(node.weight)]

    def _logits(self, node: Weighted, x: torch.Tensor) -> torch.Tensor:
        shape, packed = self.network.shapes[node.name], self._packed[node.name]
        out, *space = shape
        sums = np.empty((len(x), *(space or (1, 1)), packed.width), np.int32)
        packed(_space_first(x), sums, 0)
        integers = torch.from_numpy(sums[..., :out] * node.multiplier.astype(np.int64))
        integers = integers.clamp(min=0) if node.relu else integers
        return integers.permute(0, 3, 1, 2).reshape(len(x), *shape)

    def _max_pool(self, x: torch.Tensor, node: MaxPool) -> torch.Tensor:
        channels, *sides = self.network.shapes[node.name]
        y = torch.empty((len(x), *sides, channels), dtype=torch.uint8)
        kernels.max_pool(_space_first(x), y.numpy(), node.kernel, node.stride)
        return y.permute(0, 3, 1, 2)

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = in_order(a), in_order(b)
        y = torch.empty_like(a)
        kernels.add(rows(a).reshape(-1), rows(b).reshape(-1), rows(y).reshape(-1))
        return y

    def _add_scaled(self, a: torch.Tensor, b: torch.Tensor, multiplier: np.ndarray) -> torch.Tensor:
        a, b = in_order(a), in_order(b)
        y = torch.empty_like(a, dtype=torch.uint8)
        flat = (rows(x).reshape(-1) for x in (a, b, y))
        kernels.add_scaled(*flat, *multiplier.astype(np.int64))
        return y

    def _tap(self, x, images, codes, weights, counts, attention):
        x = in_order(x)
        y = torch.empty((images * len(codes), *x.shape[1:]), dtype=x.dtype, memory_format=order(x))
        shape = (len(y), y[0, 0].numel()) if attention and x.dim() == 4 else (0, 0)
        energy = torch.empty(shape, dtype=torch.int64)
        exact, approximated = rows(x), rows(y)
        vectors = not exact.shape[2] % simd.POOLED and exact.shape[2] <= simd.LONGEST
        run = kernels.approximate_avx2 if vectors else kernels.approximate
        for k, five in enumerate(codes.astype(np.uint8)):
            part, source = slice(k * images, (k + 1) * images), k * images % len(x)
            run(exact[source : source + images], approximated[part], five, weights, counts[k], energy[part].numpy())
        return y, self._energy(y) if attention and x.dim() == 2 else energy if attention else None

    def _tally(self, x: torch.Tensor, codes: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> None:
        for part, (_, v1, _, _, tmax), four in zip(np.split(rows(x), len(codes)), codes, counts, strict=True):
            kernels.tally(part, np.uint8(0), np.uint8(v1), np.uint8(tmax), weights, four)

    def _look_up(self, x: torch.Tensor, values: np.ndarray) -> torch.Tensor:
        x = in_order(x)
        y = torch.empty_like(x)
        kernels.look_up(rows(x).reshape(-1), rows(y).reshape(-1), values)
        return y

    def _histogram(self, x: torch.Tensor, weights: np.ndarray) -> np.ndarray:
        found = np.zeros(256, np.int64)
        kernels.histogram(rows(x), weights, found)
        return found

    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return x.long() ** 2
        q = torch.empty((len(x), x.shape[2] * x.shape[3]), dtype=torch.int64)
        channels_last = rows(x)
        kernels.energy(channels_last.reshape(-1, channels_last.shape[2]), q.view(-1).numpy())
        return q

    def _find_slices(self) -> dict[str, tuple[str, int]]:
        """The convolutions that write into a concatenation: its name, and the first of their channels in it."""
        slices = {}
        for nodes in self._segments:
            here = {node.name for node in nodes if isinstance(node, Weighted)}
            for node in nodes:
                if isinstance(node, Concatenation) and all(self._alone(name, here) for name in node.inputs):
                    widths = [self.network.shapes[name][0] for name in node.inputs]
                    slices |= {name: (node.name, sum(widths[:k])) for k, name in enumerate(node.inputs)}
        return slices

    def _alone(self, name: str, here: Collection[str]) -> bool:
        """Whether the named tensor is one of these convolutions', and read once."""
        return name in here and sum(node.inputs.count(name) for node in self.network.nodes) == 1


def _buffer(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    memory = torch.channels_last if len(shape) == 3 else torch.contiguous_format
    return torch.empty(count, *shape, dtype=torch.uint8, memory_format=memory)


def rows(codes: torch.Tensor) -> np.ndarray:
    """Views codes `(n, c, h, w)` channels-last as `(n, h * w, c)`, or `(n, features)` as `(n, 1, features)`."""
    if codes.dim() == 2:
        return codes.contiguous().numpy()[:, None]
    return codes.permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()


def _space_first(x: torch.Tensor) -> np.ndarray:
    """Views `x (n, c, h, w)` as `(n, h, w, c)`, and `(n, features)` as `(n, 1, 1, features)`."""
    if x.dim() == 2:
        return x.contiguous().numpy()[:, None, None]
    return x.permute(0, 2, 3, 1).contiguous().numpy()
