"""Runs an INT8 network one segment at a time; what the engines have in common.

A segment is what lies between two approximated layers. An engine takes a batch to the codes of the first layer
(`start`), then applies a layer's TAP and goes on to the next one (`advance`), until the logits. Nothing here knows a
model. Several configurations can go in lockstep: their batches lie one after the other. An engine cannot be pickled:
build it in each process, from the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from approx_env import data, tap
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Flatten, MaxPool, Node, Site
from approx_env.lookup import Lookup

NO_CODES = np.zeros((1, len(tap.WITH_TMAX)), np.int64)  # by which products are counted where a layer is exact


@dataclass(frozen=True)
class State:
    """A batch on its way: the tensors that later nodes still read, and what was counted at the layer just passed."""

    layer: int  # index of the next approximated layer; the number of layers once the logits are there
    tensors: dict[str, torch.Tensor]  # codes, or integer logits behind the last weighted node
    configurations: int = 1  # that go in lockstep; tensors hold the batch of each, one after the other
    # (configurations, 4) int64: products by the kind of activation that they read; zero or exact at an exact layer.
    counts: np.ndarray | None = None
    energy: torch.Tensor | None = None  # (configurations * n, p) int64: sum of squares, at an attention layer

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def size_bytes(self) -> int:
        """Memory that the tensors hold."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Engine(ABC):
    """An INT8 network made ready to run.

    Args:
        network: what to run.
        readers: whose products are counted at each layer.
        observed: names of tensors that a caller wants to look at. The state behind the segment that makes one holds it.
            A layer's name stands for its approximated codes.
    """

    chunk = 64  # images that go through the network together: 128 were 3 % faster

    def __init__(self, network: Network, readers: Sequence[cost.Reader] = (), observed: Collection[str] = ()):
        self.network = network
        self._readers = readers
        self._segments = _segments(network)
        self._live = _live_after(self._segments, network, observed)

    def start(self, images: torch.Tensor | np.ndarray) -> State:
        """Takes `images (n, c, h, w) uint8` to the codes of the first approximated layer."""
        return self._state(0, self._run(0, self._pixels(images)))

    def codes(self, state: State) -> torch.Tensor:
        """The codes of the layer that comes next, before TAP: `(n, c, h, w)` or `(n, features)`."""
        return state[self._site(state).inputs[0]]

    def histogram(self, state: State) -> np.ndarray:
        """How often each code of the layer that comes next is there, before TAP: `(256,) int64`."""
        codes = self.codes(state)
        return self._histogram(codes, np.ones(codes[0, 0].numel(), np.int64))

    def advance(
        self, state: State, codes: Sequence | np.ndarray | Lookup | None, tmax: int = tap.HIGHEST_CODE
    ) -> State:
        """Approximates the next layer by `codes` and runs on to the layer after it.

        `state` stays as it is.

        Args:
            codes: `(t1, v1, t2, v2)`, or `(k, 4)`, one for each configuration. A state of one configuration becomes
                one of k. A fifth code is a configuration's own tmax. Or a table for all configurations, or None to
                leave the layer exact: then its products are counted as zero or exact.
            tmax: of codes that come without; of a table nobody asks for it.

        Raises:
            ValueError: invalid codes.
        """
        if codes is None or isinstance(codes, Lookup):
            return self._advance_by_table(state, codes)
        site, exact, tensors, count = self._site(state).name, self.codes(state), state.tensors, state.configurations
        quintuples = _quintuples(codes, tmax, count)
        counts = np.zeros((len(quintuples), len(cost.KINDS)), np.int64)
        times, images = len(quintuples) // count, len(exact) // count
        if times > 1:
            tensors = {name: tensor.repeat(times, *[1] * (tensor.dim() - 1)) for name, tensor in tensors.items()}
        tensors, energy = self._approximate(site, exact, images, tensors, quintuples, counts)
        return self._state(state.layer + 1, tensors, len(quintuples), counts, energy)

    def _advance_by_table(self, state: State, table: Lookup | None) -> State:
        """What `advance` does with a table, the same for all configurations, or with an exact layer."""
        site, exact, count = self._site(state), self.codes(state), state.configurations
        approximated = exact if table is None else self._look_up(exact, table.values)
        energy = self._energy(approximated) if site.name in self.network.attention else None
        tensors = self._run(state.layer + 1, state.tensors | {site.name: approximated})
        counts = np.zeros((count, len(cost.KINDS)), np.int64)
        for reader in self._readers:
            if reader.layer != site.name:
                continue
            if table is None:
                self._tally(tensors[reader.tensor], NO_CODES.repeat(count, 0), reader.weights, counts)
                continue
            for four, part in zip(counts, tensors[reader.tensor].chunk(count), strict=True):
                np.add.at(four, table.kinds, self._histogram(part, reader.weights))
        return self._state(state.layer + 1, tensors, count, counts, energy)

    def forward(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Runs the exact network: `(n, c, h, w) uint8` -> logits `(n, classes) float64`."""
        state = self.start(images)
        for layer, name in enumerate(self.network.layers, 1):  # as `advance` would, but nothing is measured
            state = self._state(layer, self._run(layer, state.tensors | {name: self.codes(state)}))
        return self.logits(state)

    def logits(self, state: State) -> torch.Tensor:
        """The logits `(configurations * n, classes) float64` of a state that has passed every layer, on the CPU."""
        return state[self.network.nodes[-1].name].cpu().double() * self.network.logit_scale

    def _site(self, state: State) -> Node:
        return self.network.by_name[self.network.layers[state.layer]]

    def _pixels(self, images: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        """What the first nodes read."""
        x = data.standardise(images) if self.network.standardised else torch.as_tensor(images)
        return {INPUT: self._input(x)}

    def _state(self, layer: int, tensors: dict[str, torch.Tensor], *rest) -> State:
        """A state with the tensors that are read later."""
        return State(layer, {name: tensor for name, tensor in tensors.items() if name in self._live[layer]}, *rest)

    @abstractmethod
    def _run(self, segment: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`tensors`, and the outputs of a segment's nodes that are read behind them."""

    @abstractmethod
    def _input(self, images: torch.Tensor) -> torch.Tensor:
        """Images `uint8` as this engine has codes."""

    @abstractmethod
    def _approximate(
        self,
        site: str,
        exact: torch.Tensor,
        images: int,
        tensors: dict[str, torch.Tensor],
        codes: np.ndarray,
        counts: np.ndarray,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Approximates a layer by each of `codes (k, 5)`, tmax among them, and runs the segment behind it.

        Args:
            exact: the layer's codes in batches of `images` images: one, which all configurations approximate, or k.
            tensors: what later nodes read, in k batches.
            counts: `(k, 4) int64`, to which the products of each kind are added.

        Returns:
            `tensors` and what `_run` adds to them; and the layer's energy, if its attention is compared.
        """

    @abstractmethod
    def _tally(self, x: torch.Tensor, codes: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> None:
        """Adds to `counts (k, 4)` the products that read `x`, which TAP by `codes (k, 5)` has passed, by kind."""

    @abstractmethod
    def _look_up(self, x: torch.Tensor, values: np.ndarray) -> torch.Tensor:
        """The entry of `values (256,) uint8` for each code of `x`."""

    @abstractmethod
    def _histogram(self, x: torch.Tensor, weights: np.ndarray) -> np.ndarray:
        """How many products read each code of `x`: `(256,) int64`; `weights (p,) int64` are those at a position."""

    @abstractmethod
    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over channels of squared codes: `(n, h * w) int64`; each feature's square where there is no space."""


def _quintuples(codes: Sequence | np.ndarray, tmax: int, count: int) -> np.ndarray:
    """Valid codes with tmax as `(k, 5)`, for a state of `count` configurations."""
    for one in codes if np.ndim(codes) == 2 else [codes]:
        tap.check(one, tmax)
    quintuples = tap.complete(codes, tmax).reshape(-1, len(tap.WITH_TMAX))
    if count not in (1, len(quintuples)):
        raise ValueError(f"{count} configurations are in lockstep, and codes for {len(quintuples)} came")
    return quintuples


def _segments(network: Network) -> list[list[Node]]:
    """The nodes up to the first site, between each two, and behind the last; the sites themselves left out.

    Pools and flattening behind a site come right after it, before other sites: there their products are counted.
    """
    segments: list[list[Node]] = [[]]
    behind: dict[str, int] = {}  # segments of sites, and of pools behind them
    for node in network.nodes:
        if isinstance(node, Site):
            segments.append([])
            behind[node.name] = len(segments) - 1
        elif isinstance(node, MaxPool | Flatten) and node.inputs[0] in behind:
            behind[node.name] = behind[node.inputs[0]]
            segments[behind[node.name]].append(node)
        else:
            segments[-1].append(node)
    return segments


def _live_after(segments: list[list[Node]], network: Network, observed: Collection[str]) -> list[set[str]]:
    """For each segment the tensors to keep: those that later segments read, and the observed ones that are new."""
    needed, live = {network.nodes[-1].name}, []
    for position in reversed(range(len(segments))):
        made = {node.name for node in segments[position]} | set(network.layers[position - 1 : position])
        live.append(needed | (made & set(observed)))
        needed = needed | {name for node in segments[position] for name in node.inputs}
        if position > 0:
            needed |= set(network.by_name[network.layers[position - 1]].inputs)
    return live[::-1]


def mean(total: torch.Tensor, places: int) -> torch.Tensor:
    """The mean of codes, halves rounded up, of their sum in float64."""
    return ((total + places // 2) / places).floor()


def order(x: torch.Tensor) -> torch.memory_format:
    """How the engines keep `x`: channels innermost."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


def in_order(x: torch.Tensor) -> torch.Tensor:
    """`x` with its channels innermost."""
    return x.contiguous(memory_format=order(x))
