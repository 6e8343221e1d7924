"""The engine for x86 CPUs: uint8 codes, channels last, on the vector code of `convolution.py` and `kernels.py`.

A call works on the thread that makes it, and several threads may share an engine. Each CPU computes by the best
instruction set that it has, and all compute the same integers. An engine cannot be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import torch

from approx_env.engines.base import Engine, State, in_order
from approx_env.engines.vector import convolution, grouped, kernels
from approx_env.engines.vector.plan import TABLE_NAME, Plan, Scratch
from approx_env.engines.vector.steps import TABLE
from approx_env.errors import InputError
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import Node, Site, Weighted


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
        self._scratch = Scratch()
        counted = {reader.tensor for reader in readers}
        parts = list(zip(self._segments, self._live, strict=True))
        self.plans = [self._plan(nodes, live | counted) for nodes, live in parts]
        sites = [network.by_name[name] for name in network.layers]
        self.approximating = [  # of the segment behind each layer, and before it the layer's TAP
            self._plan([site, *nodes], live, approximated=True, readers=readers)
            for site, (nodes, live) in zip(sites, parts[1:], strict=True)
        ]

    def __copy__(self) -> VectorEngine:
        return self

    def __deepcopy__(self, memo: dict) -> VectorEngine:
        return self  # nothing in it changes, and its plans hold addresses

    def __reduce__(self):
        raise TypeError("an engine cannot be pickled, its plans hold addresses: build it in each process")

    def _pack(self, node: Weighted, instructions: str) -> convolution.PackedConvolution | grouped.Grouped:
        zero_point = self.network.zero_point(node.inputs[0])
        if node.groups > 1:
            return grouped.Grouped(node, zero_point)
        return convolution.kind_of(node, instructions)(node, zero_point, instructions)

    def _plan(self, nodes: Sequence[Node], kept: Collection[str], **more) -> Plan:
        return Plan(self.network, nodes, kept, self._packed, self._scratch, **more)

    @cached_property
    def _whole(self) -> Plan:
        """All nodes, without approximation."""
        return self._plan(self.network.nodes, {self.network.nodes[-1].name})

    def forward(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        if isinstance(self.network.nodes[-1], Site):
            return super().forward(images)
        return self.logits(State(len(self.network.layers), self._whole.run(self._pixels(images))))

    def _run(self, segment: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | self.plans[segment].run(tensors)

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != self.network.input_shape:
            shape = ", ".join(map(str, self.network.input_shape))
            raise ValueError(f"images must be (n, {shape}) uint8, got {tuple(images.shape)} {images.dtype}")
        return in_order(images)

    def _approximate(self, site, exact, images, tensors, codes, counts):
        exact, count = in_order(exact), len(codes) * images
        five = np.zeros((len(codes), 8), np.uint8)
        five[:, :5] = codes
        energy = self._no_energy(site, count) if site in self.network.attention else None
        table, which = np.empty((count, TABLE), np.int64), np.arange(count) // images  # of the configurations
        table[:, 0] = five.ctypes.data + five.strides[0] * which
        table[:, 1] = counts.ctypes.data + counts.strides[0] * which
        table[:, 2] = exact.data_ptr() + exact[0].nbytes * (np.arange(count) % len(exact))
        table[:, 3] = 0 if energy is None else energy.data_ptr() + energy[0].nbytes * np.arange(count)
        plan = self.approximating[self.network.layers.index(site)]
        return tensors | plan.run(tensors | {TABLE_NAME: torch.from_numpy(table)}), energy

    def _no_energy(self, site: str, count: int) -> torch.Tensor:
        """Memory for the energy of so many images."""
        features, *space = self.network.shapes[site]
        return torch.empty((count, math.prod(space) if space else features), dtype=torch.int64)

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


def rows(codes: torch.Tensor) -> np.ndarray:
    """Views codes `(n, c, h, w)` channels-last as `(n, h * w, c)`, or `(n, features)` as `(n, 1, features)`."""
    if codes.dim() == 2:
        return codes.contiguous().numpy()[:, None]
    return codes.permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()
