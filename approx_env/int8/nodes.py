"""The nodes of an INT8 network, and the integers that they compute.

Weights are int8, symmetric, per output channel; activations uint8, per tensor, `x = scale * (code - zero_point)`, with
zero point 0 behind a ReLU. Every number that an engine computes is an integer, defined here. So all engines, all CPUs
and all hardware give the same codes.

A weighted node adds up products, adds its bias, and requantises with one integer multiplier for each output channel
and one shift for all. It rounds halves up, as hardware does that adds half a step before it shifts:

    a = sum (c - z) w + bias
    code = clamp((a * multiplier + 2**15) >> 16, 0, 255)                     1 <= multiplier < 2**24

Source: Jacob et al., CVPR 2018, section 2.2, eq. 4 to 6, with a fixed shift. The real weight scale of a channel is
`multiplier * scale / (2**16 * input scale)`: the quantiser fits it to the multiplier, not the other way round.

Why 16: float32 then computes the same code, and needs one multiplication. A code below 256 has 8 bits before the point
and 16 behind it, which are the 24 of a float32, so that the product is exact. A larger product may be rounded, but
rounding keeps order: it stays at 256 or above, and is cut to 255.

The last weighted node gives logits, which are not cut: `a * multiplier`, int64. An average pool gives
`(sum + n // 2) // n` of n codes; of logits a global one gives the sum, and their scale is divided by n instead. A
logit's value is `integer * Network.logit_scale`, in float64, where the integer is exact.

A residual branch has a sign and a scale of its own. So a weighted node that a scaled addition reads stays wide: it
gives `a * multiplier`, as of logits, in units of the addition's scale / 2**16. The other operand is wide, too, or codes
of any scale; their multiplier is their scale over the addition's, times 2**16, and that of wide integers is 1:

    code = clamp((x * multiplier of x + y * multiplier of y + 2**15) >> 16, 0, 255)

Wide integers stay below 2**40, and codes times a multiplier below 2**32: int64 and float64 are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INPUT = "input"
SHIFT = 16  # a multiplier m stands for m / 2**SHIFT
HALF = 1 << (SHIFT - 1)
HIGHEST_MULTIPLIER = 2**24 - 1  # exact in float32
HIGHEST_WEIGHT = 127
HIGHEST_PAIR = 128  # of two neighbouring input channels' weights of one sign: 255 * 128 < 2**15
HIGHEST_SUM = 2**30  # of products and bias, in magnitude
HIGHEST_VALUE = 2**30  # of a sum, requantised and not cut, in magnitude
HIGHEST_LOGIT = 2**40  # in magnitude, of all wide integers: a sum over 4,096 places is exact in float64


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; `inputs` are names of earlier nodes, or 'input'."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Weighted(Node):
    """A node with weights."""

    groups = 1  # of channels; only a convolution may have more

    weight: np.ndarray  # (out, in / groups, height, width) or (out, in) int8, in -127..127, pair-safe
    bias: np.ndarray  # (out,) int32, in units of a product
    multiplier: np.ndarray  # (out,) int32, in 1..HIGHEST_MULTIPLIER
    relu: bool  # whether negative logits become 0; codes have no sign anyway
    scale: float  # of the output codes; of wide integers: of a * multiplier / 2**16
    logits: bool  # whether the output is wide, a * multiplier in int64: logits, or what a scaled addition reads


@dataclass(frozen=True, eq=False)
class Convolution(Weighted):
    """Two-dimensional convolution, no dilation, the same stride and padding in both directions.

    With more than one group, the channels of input and output lie in as many equal parts, and an output channel reads
    the input channels of its own part alone. As many groups as input channels make it depthwise.
    """

    stride: int
    padding: int
    groups: int = 1  # files from before there were groups do not name them


@dataclass(frozen=True, eq=False)
class Linear(Weighted):
    """Fully connected layer on `(n, in)`."""


@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Maximum over square windows without padding; `ceil` keeps windows that the border cuts."""

    kernel: int
    stride: int
    ceil: bool


@dataclass(frozen=True, eq=False)
class AveragePool(Node):
    """Mean of the codes of square windows without padding, halves rounded up; what the border would cut is left out."""

    kernel: int
    stride: int


@dataclass(frozen=True, eq=False)
class GlobalAveragePool(Node):
    """Mean over space of codes, sum over space of logits; gives `(n, c)`."""


@dataclass(frozen=True, eq=False)
class Concatenation(Node):
    """Concatenation over channels of tensors that share one scale."""


@dataclass(frozen=True, eq=False)
class Addition(Node):
    """Sum of two tensors that share one scale, and whose zero point is 0: min(a + b, 255) in codes."""


@dataclass(frozen=True, eq=False)
class ScaledAddition(Node):
    """Sum of two tensors, each wide or codes of its own scale, as codes: what is negative becomes 0."""

    multiplier: np.ndarray  # (2,) int32, of each operand: 1 of wide integers, in 1..HIGHEST_MULTIPLIER of codes
    scale: float  # of the output codes, and of wide operands


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """`(n, c, h, w)` -> `(n, c * h * w)` in that order."""


@dataclass(frozen=True, eq=False)
class Site(Node):
    """A record point: the codes that TAP approximates. Its name is the layer's."""


OPERATIONS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Convolution, Linear, MaxPool, AveragePool, GlobalAveragePool, Concatenation, Addition, ScaledAddition, Flatten,
        Site,
    )
}  # fmt: skip


def weight_pairs(weight: np.ndarray) -> np.ndarray:
    """Largest magnitude of the same-signed sum of two neighbouring input channels, per output channel.

    Args:
        weight: `(out, in / groups, ...)`, any number type.

    Returns:
        `(out,)`, of the same type (int64 for integers).
    """
    wide = weight.astype(np.int64) if np.issubdtype(weight.dtype, np.integer) else weight
    wide = wide.reshape(*wide.shape[:2], -1)
    even, odd = wide[:, 0::2], wide[:, 1::2]
    if odd.shape[1] < even.shape[1]:
        odd = np.concatenate([odd, np.zeros_like(even[:, :1])], 1)
    positive = np.maximum(even, 0) + np.maximum(odd, 0)
    negative = np.maximum(-even, 0) + np.maximum(-odd, 0)
    return np.maximum(positive, negative).max((1, 2))


def highest_sums(node: Weighted) -> np.ndarray:
    """The largest magnitude that products and bias can add up to, per output channel: `(out,) int64`."""
    products = 255 * np.abs(node.weight.astype(np.int64)).reshape(len(node.weight), -1).sum(1)
    return products + np.abs(node.bias.astype(np.int64))
