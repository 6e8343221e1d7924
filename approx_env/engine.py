"""Runs an INT8 network on oneDNN's uint8 convolution kernels, one segment at a time.

On CPUs without VNNI the kernels of `convolution.py`, which are faster there, take the convolutions that they can.

A segment is what lies between two approximated layers. The engine takes a batch to the codes of the first layer
(`start`), then applies a layer's TAP and goes on to the next one (`advance`), until the logits. Nothing in it knows
a model. Packed weights cannot be pickled: build an engine in each process, from the network.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from approx_env import convolution, data, kernels, quantize, tap
from approx_env.errors import InputError
from approx_env.network import (
    INPUT,
    Addition,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Node,
    Site,
    Weighted,
)

ONEDNN = torch.ops.onednn


@dataclass(frozen=True)
class State:
    """A batch on its way: the tensors that later nodes still read, and the layer whose codes come next."""

    layer: int  # index of the next approximated layer; the number of layers once the logits are there
    tensors: dict[str, torch.Tensor]  # uint8 channels-last codes, or float32

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Engine:
    """An INT8 network made ready to run on this machine's CPU.

    Args:
        network: what to run.
        observed: tensors that a state keeps when its last segment made them, for a caller to look at.

    Raises:
        InputError: this torch has no oneDNN kernels, or this CPU would saturate the network's products.
    """

    def __init__(self, network: Network, observed: Collection[str] = ()):
        if not torch.backends.mkldnn.is_available() or not hasattr(ONEDNN, "qconv2d_pointwise"):
            raise InputError("the onednn engine needs an x86 build of torch with oneDNN, which this one is not")
        self.network = network
        self._packed = {node.name: _pack(network, node) for node in network.nodes if isinstance(node, Weighted)}
        self._segments = _segments(network)
        self._slices = self._find_slices()
        self._live = _live_after(self._segments, network, observed)

    def start(self, images: torch.Tensor | np.ndarray) -> State:
        """Takes `images (n, c, h, w) uint8` to the codes of the first approximated layer."""
        x = data.standardise(images) if self.network.standardised else torch.as_tensor(images)
        return self._run(0, {INPUT: x.contiguous(memory_format=torch.channels_last)})

    def codes(self, state: State) -> torch.Tensor:
        """The codes of the layer that comes next, before TAP: `(n, c, h, w)` or `(n, features) uint8`."""
        return state[self._site(state).inputs[0]]

    def advance(self, state: State, codes: Sequence[int] | None, tmax: int = tap.HIGHEST_CODE) -> State:
        """Approximates the next layer by `codes` (None: leaves it exact) and runs on to the layer after it.

        `state` stays as it is. The approximated codes are in the new state under the layer's name.

        Raises:
            ValueError: invalid codes.
        """
        exact = self.codes(state)
        approximated = exact if codes is None else _tap(exact, codes, tmax)
        return self._run(state.layer + 1, state.tensors | {self._site(state).name: approximated})

    def forward(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Runs the exact network: `(n, c, h, w) uint8` -> logits `(n, classes) float32`."""
        state = self.start(images)
        for _ in self.network.layers:
            state = self.advance(state, None)
        return self.logits(state)

    def logits(self, state: State) -> torch.Tensor:
        """The logits `(n, classes) float32` of a state that has passed every layer."""
        return state[self.network.nodes[-1].name]

    def _site(self, state: State) -> Node:
        return self.network.by_name[self.network.layers[state.layer]]

    def _run(self, segment: int, tensors: dict[str, torch.Tensor]) -> State:
        for node in self._segments[segment]:
            if node.name not in tensors:  # a concatenation whose parts were written into it is there already
                tensors[node.name] = self._apply(node, tensors)
        keep = self._live[segment]
        return State(segment, {name: tensor for name, tensor in tensors.items() if name in keep})

    def _apply(self, node: Node, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = [tensors[name] for name in node.inputs]
        match node:
            case Convolution() | Linear():
                packed = self._packed[node.name]
                if isinstance(packed, convolution.Packed):
                    return self._convolve(node, packed, tensors)
                return packed(inputs[0])
            case MaxPool():
                return _max_pool(inputs[0], node, self.network.shapes[node.name])
            case Concatenation():
                return torch.cat(inputs, 1)
            case Addition():
                return _add(*inputs)
            case Flatten():
                return inputs[0].contiguous().flatten(1)
            case GlobalAveragePool():
                return inputs[0].mean((2, 3))
        raise NotImplementedError(type(node).__name__)


    def _convolve(self, node: Convolution, packed: convolution.Packed, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Runs one of our own convolutions, straight into the concatenation that reads it, if one does."""
        x = tensors[node.inputs[0]].permute(0, 2, 3, 1).contiguous()
        channels = len(node.weight)
        whole, offset = self._slices.get(node.name, (node.name, 0))
        if whole not in tensors:
            shape = self.network.shapes[whole]
            tensors[whole] = torch.empty(len(x), *shape, dtype=torch.uint8, memory_format=torch.channels_last)
        y = tensors[whole].permute(0, 2, 3, 1)
        packed(x.numpy(), y.numpy(), offset)
        return tensors[whole][:, offset : offset + channels]

    def _find_slices(self) -> dict[str, tuple[str, int]]:
        """The convolutions that write into a concatenation: its name, and the first of their channels in it."""
        slices = {}
        for node in self.network.nodes:
            if isinstance(node, Concatenation) and all(self._writes_slices(name) for name in node.inputs):
                widths = [self.network.shapes[name][0] for name in node.inputs]
                slices |= {name: (node.name, sum(widths[:k])) for k, name in enumerate(node.inputs)}
        return slices

    def _writes_slices(self, name: str) -> bool:
        """Whether the named tensor is one of our own convolutions', and read by one node alone."""
        return isinstance(self._packed.get(name), convolution.Packed) and len(self.network.consumers(name)) == 1


@cache
def saturates() -> bool:
    """Whether this CPU's uint8 x int8 convolution saturates sums of two products at 16 bits (AVX2 without VNNI)."""
    x = torch.full((1, 32, 4, 4), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((32, 32, 1, 1), quantize.HIGHEST_WEIGHT, dtype=torch.int8)
    ones = torch.ones(32)
    run = _packed_convolution(weight, ones, torch.zeros(32), 1.0, 0, 1, 0, relu=False, output_scale=None, shape=x.shape)
    return bool((run(x) != 255.0 * quantize.HIGHEST_WEIGHT * 32).any())


def _pack(network: Network, node: Weighted):
    """A function from the node's input codes to its output, with the weights in oneDNN's own order."""
    worst = int(quantize.weight_pairs(node.weight).max())
    if worst > quantize.HIGHEST_PAIR and saturates():
        raise InputError(
            f"'{node.name}' has neighbouring weights that add up to {worst}, and this CPU, which has no VNNI "
            f"instructions, saturates above {quantize.HIGHEST_PAIR}: quantise the teacher with approx_env.quantize, "
            "whose weights are safe everywhere, or run on a CPU with VNNI"
        )
    source = node.inputs[0]
    scale, zero_point = network.scales[source], network.zero_point(source)
    if isinstance(node, Convolution) and node.scale is not None and saturates() and convolution.available():
        kind = convolution.packable(node.weight, node.bias, node.stride, node.padding)
        if kind is not None:
            multiplier = scale * node.weight_scale.astype(np.float64) / node.scale
            return kind(node.weight, node.bias, multiplier, zero_point, node.stride, node.padding)
    weight, weight_scale = torch.from_numpy(np.ascontiguousarray(node.weight)), torch.from_numpy(node.weight_scale)
    bias = torch.from_numpy((node.bias * (scale * node.weight_scale.astype(np.float64))).astype(np.float32))
    common = {"relu": node.relu, "output_scale": node.scale}
    if isinstance(node, Convolution):
        return _packed_convolution(weight, weight_scale, bias, scale, zero_point, node.stride, node.padding,
                                   shape=(1, *network.shapes[source]), **common)  # fmt: skip
    # oneDNN's matrix product begins blocks of long inputs at odd places, so that its pairs are not the weights' own,
    # and saturates all the same; its convolution does not.
    weight = weight[:, :, None, None]
    run = _packed_convolution(weight, weight_scale, bias, scale, zero_point, 1, 0,
                              shape=(1, weight.shape[1], 1, 1), **common)  # fmt: skip
    return lambda x: run(x[:, :, None, None].contiguous(memory_format=torch.channels_last)).flatten(1)


def _packed_convolution(weight, weight_scale, bias, scale, zero_point, stride, padding, *, relu, output_scale, shape):
    geometry = ([stride] * 2, [padding] * 2, [1, 1], 1)
    packed = ONEDNN.qconv_prepack(weight, weight_scale, scale, zero_point, *geometry, list(shape))
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    kind = torch.uint8 if output_scale else torch.float32
    output = (output_scale or 1.0, 0, kind, "relu" if relu else "none")
    return lambda x: ONEDNN.qconv2d_pointwise(
        x, scale, zero_point, packed, weight_scale, zeros, bias, *geometry, *output, [], ""
    )


def _segments(network: Network) -> list[list[Node]]:
    """The nodes up to the first site, between each two, and behind the last; the sites themselves left out."""
    segments: list[list[Node]] = [[]]
    for node in network.nodes:
        segments.append([]) if isinstance(node, Site) else segments[-1].append(node)
    return segments


def _live_after(segments: list[list[Node]], network: Network, observed: Collection[str]) -> list[set[str]]:
    """For each segment the tensors to keep: what later ones read, the layer just approximated, what is observed."""
    sites = [network.by_name[name] for name in network.layers]
    needed = {network.nodes[-1].name}
    live = []
    for position in reversed(range(len(segments))):
        keep = needed | {node.name for node in segments[position] if node.name in observed}
        if position > 0:
            keep.add(sites[position - 1].name)
        live.append(keep)
        needed |= {name for node in segments[position] for name in node.inputs}
        if position > 0:
            needed |= set(sites[position - 1].inputs)
    return live[::-1]


def rows(codes: torch.Tensor) -> np.ndarray:
    """Views codes `(n, c, h, w)` channels-last as `(n, h * w, c)`, or `(n, features)` as `(n, 1, features)`."""
    if codes.dim() == 2:
        return codes.contiguous().numpy()[:, None]
    return codes.permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()


def _in_order(x: torch.Tensor) -> torch.Tensor:
    """`x` with its channels innermost, so that `rows` views it without a copy."""
    return x.contiguous() if x.dim() == 2 else x.contiguous(memory_format=torch.channels_last)


def _flat(x: torch.Tensor) -> np.ndarray:
    return rows(x).reshape(-1)


def _tap(x: torch.Tensor, codes: Sequence[int], tmax: int) -> torch.Tensor:
    tap.check(codes, tmax)
    x = _in_order(x)
    y = torch.empty_like(x)
    kernels.tap(_flat(x), _flat(y), *(np.uint8(code) for code in (*codes, tmax)))
    return y


def _add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = _in_order(a), _in_order(b)
    y = torch.empty_like(a)
    kernels.add(_flat(a), _flat(b), _flat(y))
    return y


def _max_pool(x: torch.Tensor, node: MaxPool, shape: tuple[int, ...]) -> torch.Tensor:
    x = x.permute(0, 2, 3, 1).contiguous()
    y = torch.empty((len(x), *shape[1:], shape[0]), dtype=torch.uint8)
    kernels.max_pool(x.numpy(), y.numpy(), node.kernel, node.stride)
    return y.permute(0, 3, 1, 2)
