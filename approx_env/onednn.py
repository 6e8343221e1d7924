"""The engine for x86 CPUs: uint8 codes, channels last, on oneDNN's convolution kernels.

On CPUs without VNNI the kernels of `convolution.py`, which are faster there, take the convolutions that they can.
One thread does all the work. Packed weights cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np
import torch

from approx_env import convolution, cost, kernels, quantize, simd
from approx_env.engine import Engine, in_order, order
from approx_env.errors import InputError
from approx_env.network import Concatenation, Convolution, MaxPool, Network, Weighted

ONEDNN = torch.ops.onednn


class OneDnnEngine(Engine):
    """An INT8 network made ready to run on this machine's CPU.

    Raises:
        InputError: this torch has no oneDNN kernels, or this CPU would saturate the network's products.
    """

    def __init__(self, network: Network, readers: Sequence[cost.Reader] = (), observed: Collection[str] = ()):
        if not torch.backends.mkldnn.is_available() or not hasattr(ONEDNN, "qconv2d_pointwise"):
            raise InputError(
                "the onednn engine needs an x86 build of torch with oneDNN, which this one is not: use the portable one"
            )
        super().__init__(network, readers, observed)
        self._packed = {node.name: _pack(network, node) for node in network.nodes if isinstance(node, Weighted)}
        self._slices = self._find_slices()

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    def _weighted(self, node: Weighted, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        packed = self._packed[node.name]
        if not isinstance(packed, convolution.Packed):
            return packed(x)
        whole, offset = self._slices.get(node.name, (node.name, 0))
        if whole not in tensors:
            shape = self.network.shapes[whole]
            tensors[whole] = torch.empty(len(x), *shape, dtype=torch.uint8, memory_format=torch.channels_last)
        packed(_space_first(x), tensors[whole].permute(0, 2, 3, 1).numpy(), offset)
        return tensors[whole][:, offset : offset + len(node.weight)]

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

    def _tap(self, x, images, codes, tmax, weights, counts, attention):
        x = in_order(x)
        y = torch.empty((images * len(codes), *x.shape[1:]), dtype=x.dtype, memory_format=order(x))
        energy = torch.empty(len(y), y[0, 0].numel()) if attention and x.dim() == 4 else torch.empty(0, 0)
        exact, approximated = rows(x), rows(y)
        vectors = convolution.available() and not exact.shape[2] % simd.POOLED and exact.shape[2] <= simd.LONGEST
        run = kernels.approximate_avx2 if vectors else kernels.approximate
        for k, four in enumerate(codes):
            part, source = slice(k * images, (k + 1) * images), k * images % len(x)
            five = np.array([*four, tmax], np.uint8)
            run(exact[source : source + images], approximated[part], five, weights, counts[k], energy[part].numpy())
        return y, self._energy(y) if attention and x.dim() == 2 else energy if attention else None

    def _tally(self, x: torch.Tensor, codes: np.ndarray, tmax: int, weights: np.ndarray, counts: np.ndarray) -> None:
        for part, (_, v1, _, _), four in zip(np.split(rows(x), len(codes)), codes, counts, strict=True):
            kernels.tally(part, np.uint8(0), np.uint8(v1), np.uint8(tmax), weights, four)

    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return x.float() ** 2
        q = torch.empty(len(x), x.shape[2] * x.shape[3])
        channels_last = rows(x)
        kernels.energy(channels_last.reshape(-1, channels_last.shape[2]), q.view(-1).numpy())
        return q

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
    run = packed_convolution(weight, ones, torch.zeros(32), 1.0, 0, 1, 0, relu=False, output_scale=None, shape=x.shape)
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
        return packed_convolution(weight, weight_scale, bias, scale, zero_point, node.stride, node.padding,
                                  shape=(1, *network.shapes[source]), **common)  # fmt: skip
    # oneDNN's matrix product begins blocks of long inputs at odd places, so that its pairs are not the weights' own,
    # and saturates all the same; its convolution does not.
    weight = weight[:, :, None, None]
    run = packed_convolution(weight, weight_scale, bias, scale, zero_point, 1, 0,
                             shape=(1, weight.shape[1], 1, 1), **common)  # fmt: skip
    return lambda x: run(x[:, :, None, None].contiguous(memory_format=torch.channels_last)).flatten(1)


def packed_convolution(weight, weight_scale, bias, scale, zero_point, stride, padding, *, relu, output_scale, shape):
    geometry = ([stride] * 2, [padding] * 2, [1, 1], 1)
    packed = ONEDNN.qconv_prepack(weight, weight_scale, scale, zero_point, *geometry, list(shape))
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    kind = torch.uint8 if output_scale else torch.float32
    output = (output_scale or 1.0, 0, kind, "relu" if relu else "none")
    return lambda x: ONEDNN.qconv2d_pointwise(
        x, scale, zero_point, packed, weight_scale, zeros, bias, *geometry, *output, [], ""
    )


def rows(codes: torch.Tensor) -> np.ndarray:
    """Views codes `(n, c, h, w)` channels-last as `(n, h * w, c)`, or `(n, features)` as `(n, 1, features)`."""
    if codes.dim() == 2:
        return codes.contiguous().numpy()[:, None]
    return codes.permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()


def _space_first(x: torch.Tensor) -> np.ndarray:
    """Views `x (n, c, h, w)` as `(n, h, w, c)`."""
    return x.permute(0, 2, 3, 1).contiguous().numpy()
