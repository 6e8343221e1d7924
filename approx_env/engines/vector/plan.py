"""Several nodes as one call of compiled code: what each reads, where it writes, and by which code, is decided once.

Tensors lie in memory as `channels_last` ones do. Those that are read behind the nodes get memory of their own at each
call. All others lie in memory that stays, and what is never needed at the same time shares it. A few images go through
all nodes before the next ones do, so that this memory stays in the caches. A part of a concatenation that nobody else
reads is written where the concatenation has it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from approx_env.engines.base import in_order
from approx_env.engines.vector import kernels, steps
from approx_env.engines.vector.steps import Packed, Step
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Concatenation, Node, Site, Weighted

LINE = 64  # bytes of a line of the caches
# The images that go through all steps together pass at least so many bytes: half of a second-level cache. They pass at
# least so many times the bytes of the largest weights, which come from beyond that cache each time.
PASSED_BYTES, PASSES = 2**20, 4
TABLE_NAME = "#table"  # of the table that `steps.tap` and `steps.tally` read; no node has this name
NO_WEIGHTS = np.empty(0, np.int64)

_Made = tuple[str, Step, list[str], str | None]  # a node's name, code, what it reads, and the memory that it writes to


class Scratch(threading.local):
    """Memory that plans use in turn, each thread its own; it grows with what they ask for."""

    def __init__(self):
        self._bytes = np.empty(0, np.uint8)

    def address(self, size: int) -> int:
        """Where `size` bytes are, at the beginning of a line."""
        if self._bytes.size < size + LINE:
            self._bytes = np.empty(size + LINE, np.uint8)
        return -(-self._bytes.ctypes.data // LINE) * LINE


@dataclass
class _Buffer:
    """Memory for a tensor, or for a concatenation and its parts."""

    size: int  # bytes an image, whole lines
    begin: int  # the step that writes it first
    end: int  # the last step that writes or reads it
    offset: int = 0  # in the memory that stays, bytes an image


class Plan:
    """Nodes made ready to run.

    Args:
        nodes: in an order in which they can run. A site passes on what it reads, or is approximated as the first node.
        kept: names of the tensors that are read behind them.
        packed: the nodes with weights, by name.
        approximated: whether the first node is a site to approximate, whose products `readers` read.
    """

    def __init__(
        self,
        network: Network,
        nodes: Sequence[Node],
        kept: Collection[str],
        packed: Mapping[str, Packed],
        scratch: Scratch,
        approximated: bool = False,
        readers: Sequence[cost.Reader] = (),
    ):
        self._network, self._scratch, self._packed = network, scratch, packed
        self._shapes = network.shapes | {INPUT: network.input_shape}
        self._types = {name: np.uint8 if name in network.scales else np.int64 for name in self._shapes}
        self._slices = _slices(network, nodes)
        self._passed = {node.name: node.inputs[0] for node in nodes[approximated:] if isinstance(node, Site)}
        made = [(node.name, *one) for node in nodes[approximated:] for one in self._steps(node)]
        if approximated:
            made = [self._tap(nodes[0].name, readers), *made, *self._tallies(nodes[0].name, readers)]
        self.names = [name for name, *_ in made]  # of each step's node
        self._lay_out(made, [node.name for node in nodes if node.name in kept])

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors that are kept, `(n, c, h, w)` or `(n, features)`, of those that are read.

        Args:
            tensors: by name; that of `TABLE_NAME` is `(n, steps.TABLE) int64`, if a site is approximated.
        """
        if not self.names:
            return {}
        inputs = [in_order(tensors[name]) for name in self._inputs]
        count = len(inputs[0])
        outputs = {name: self._new(name, count) for name in self._outputs}
        together = min(count, self._together)
        addresses = self._offsets * together
        addresses += self._scratch.address(self._scratch_bytes * together)
        addresses[: len(inputs) + len(outputs)] = [tensor.data_ptr() for tensor in (*inputs, *outputs.values())]
        self.carry_out(count, together, addresses)
        return {name: self._view(name, outputs) for name in self._kept}

    def carry_out(self, images: int, together: int, addresses: np.ndarray) -> None:
        """Runs all steps on tensors at these addresses, as `kernels.run` does."""
        kernels.run(self.rows, images, together, addresses, self.sizes)

    def _source(self, name: str) -> str:
        """The tensor that is read under this name."""
        while name in self._passed:
            name = self._passed[name]
        return name

    def _tap(self, site: str, readers: Sequence[cost.Reader]) -> _Made:
        weights = next((reader.weights for reader in readers if reader.tensor == site), NO_WEIGHTS)
        step = steps.tap(self._shapes[site], weights, site in self._network.attention)
        return site, step, [TABLE_NAME], site

    def _tallies(self, site: str, readers: Sequence[cost.Reader]) -> list[_Made]:
        """Counts of products that read other tensors than the site itself, as pools behind it."""
        return [
            (reader.tensor, steps.tally(self._shapes[reader.tensor], reader.weights), [reader.tensor, TABLE_NAME], None)
            for reader in readers
            if reader.layer == site != reader.tensor
        ]

    def _steps(self, node: Node) -> list[tuple[Step, list[str], str]]:
        """What a node takes: code, the names of what it reads, and the name of the memory that it writes to."""
        if isinstance(node, Site):
            return []
        sources = [self._source(name) for name in node.inputs]
        shapes = [self._shapes[name] for name in sources]
        if isinstance(node, Concatenation):
            width, ends = self._shapes[node.name][0], accumulate(shape[0] for shape in shapes)
            return [
                (steps.copy(shape, width, end - shape[0]), [name], node.name)
                for name, shape, end in zip(sources, shapes, ends, strict=True)
                if self._memory(name) != node.name
            ]
        whole, offset = self._slices.get(node.name, (node.name, 0))
        if isinstance(node, Weighted):
            step = self._packed[node.name].step(shapes[0], self._shapes[whole], offset)
        else:
            step = steps.of(node, shapes, [self._types[name] for name in sources], self._shapes[node.name])
        return [(step, sources, whole)]

    def _lay_out(self, made: Sequence[_Made], kept: list[str]) -> None:
        """Decides where everything lies, and how many images go through all steps together."""
        self._kept = kept
        self._outputs = list(dict.fromkeys(self._memory(name) for name in kept))
        buffers: dict[str, _Buffer] = {}  # of what is written here
        read: dict[str, None] = {}
        for place, (_, _, sources, whole) in enumerate(made):
            if whole is not None:
                size = -(-self._bytes(whole) // LINE) * LINE
                buffers.setdefault(whole, _Buffer(size, place, place)).end = place
            for name in map(self._memory, sources):
                read[name] = None
                if name in buffers:
                    buffers[name].end = place
        self._inputs = [name for name in read if name not in buffers]
        inner = {name: buffer for name, buffer in buffers.items() if name not in self._outputs}
        self._scratch_bytes = _pack(list(inner.values()))
        there = [*self._inputs, *self._outputs, *inner]
        self._offsets = np.array([inner[name].offset if name in inner else 0 for name in there], np.int64)
        self.sizes = np.array([0 if name in inner else self._bytes(name) for name in there], np.int64)
        largest = max((one.nbytes for _, step, *_ in made for one in step.arguments if isinstance(one, np.ndarray)),
                      default=0)  # fmt: skip
        passed = max(1, self._scratch_bytes + int(self.sizes.sum()))
        self._together = -(-max(PASSED_BYTES, PASSES * largest) // passed)
        rows = []
        for _, step, sources, whole in made:
            places = [there.index(self._memory(name)) for name in sources]
            written = 0 if whole is None else there.index(whole)
            rows.append([step.code.address, places[0], places[-1], written, *step.numbers()])
        self.rows = np.zeros((len(rows), max(map(len, rows), default=kernels.HEAD)), np.int64)
        for row, numbers in zip(self.rows, rows, strict=True):
            row[: len(numbers)] = numbers
        self._arrays = [step.arguments for _, step, *_ in made]  # whose addresses are in the rows

    def _memory(self, name: str) -> str:
        """The tensor in whose memory the named one lies."""
        return self._slices.get(name, (name, 0))[0]

    def _bytes(self, name: str) -> int:
        """Of one image."""
        if name == TABLE_NAME:
            return 8 * steps.TABLE
        return int(np.prod(self._shapes[name])) * np.dtype(self._types[name]).itemsize

    def _new(self, name: str, count: int) -> torch.Tensor:
        kind = torch.uint8 if self._types[name] is np.uint8 else torch.int64
        shape = self._shapes[name]
        memory = torch.channels_last if len(shape) == 3 else torch.contiguous_format
        return torch.empty((count, *shape), dtype=kind, memory_format=memory)

    def _view(self, name: str, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        whole, offset = self._slices.get(name, (name, 0))
        return outputs[whole] if whole == name else outputs[whole][:, offset : offset + self._shapes[name][0]]


def _pack(buffers: list[_Buffer]) -> int:
    """Gives each buffer the first place that nobody has at the same time; returns the bytes an image of all."""
    placed: list[_Buffer] = []
    for buffer in buffers:  # in the order in which they begin
        for other in sorted(placed, key=lambda other: other.offset):
            if other.end < buffer.begin:
                continue
            if buffer.offset + buffer.size <= other.offset:
                break
            buffer.offset = max(buffer.offset, other.offset + other.size)
        placed.append(buffer)
    return max((buffer.offset + buffer.size for buffer in placed), default=0)


def _slices(network: Network, nodes: Sequence[Node]) -> dict[str, tuple[str, int]]:
    """The nodes with weights that write into a concatenation: its name, and the first of their channels in it."""
    here = {node.name for node in nodes if isinstance(node, Weighted)}
    slices = {}
    for node in nodes:
        if isinstance(node, Concatenation):
            ends = accumulate(network.shapes[name][0] for name in node.inputs)
            slices |= {
                name: (node.name, end - network.shapes[name][0])
                for name, end in zip(node.inputs, ends, strict=True)
                if name in here and sum(other.inputs.count(name) for other in network.nodes) == 1
            }
    return slices
