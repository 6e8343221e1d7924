"""Fits a student's requantisation to its teacher: no training, no labels, no cost in hardware.

TAP shifts and squeezes what a weighted node adds up. Each channel of a node that reads approximated codes gets a new
multiplier and a new bias, so that its pre-activations match the teacher's over calibration images and places. Nodes
are taken in forward order: each is fitted on inputs that TAP and the correction of earlier nodes have made.

With the teacher's sums of products x and the student's y, over images and places:

    mean            the multiplier as it was,           and a bias under which the means agree
    deviation       multiplier * std(x) / std(y),       and a bias under which the means agree
    least-squares   multiplier * cov(x, y) / var(y),    and a bias under which the means agree

Source: Nagel et al., 'Data-free quantization through weight equalization and bias correction', ICCV 2019, section 4.2
(the mean); Finkelstein et al., 'Fighting quantization bias with bias', arXiv:1906.03193.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from approx_env.adapt.requantisation import with_bias, with_multiplier, with_numbers
from approx_env.engines.base import State, in_order
from approx_env.engines.portable import PortableEngine
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import Weighted
from approx_env.scoring.calibration import Calibration

METHODS = ("mean", "deviation", "least-squares")
DEFAULT = "deviation"
CHUNK = 32  # images whose float64 sums are in memory together


def correct(
    network: Network,
    calibration: Calibration,
    configuration: Sequence[Sequence[int]],
    images: np.ndarray,
    method: str = DEFAULT,
) -> Network:
    """The student of a teacher under a configuration: its nodes, with multipliers and biases that fit.

    A channel that never varies keeps the teacher's numbers. So does one that TAP does not change. A multiplier stays
    as it was where least squares would make it negative.

    Args:
        network: the exact teacher.
        calibration: of its layers; gives each layer's tmax.
        configuration: `(t1, v1, t2, v2)` of every layer, in forward order; a fifth code is the layer's own tmax.
        images: calibration images `(n, c, h, w) uint8`; 512 will do.
        method: one of METHODS.

    Raises:
        ValueError: an unknown method; a calibration of other layers; codes missing, too many or invalid.
    """
    if method not in METHODS:
        raise ValueError(f"a correction must be one of {', '.join(METHODS)}, got {method!r}")
    names = tuple(layer.name for layer in calibration.layers)
    if names != network.layers or len(configuration) != len(names):
        raise ValueError(f"there must be tmax and codes for each of {network.layers}, got {len(configuration)} codes")
    pairs = _Pairs(pool_first(network), method)
    state = pairs.begin(images)
    for codes, layer in zip(configuration, calibration.layers, strict=True):
        state = pairs.advance(state, codes, layer.tmax)
    return with_numbers(network, pairs.fitted)


class _Pairs(PortableEngine):
    """Runs teacher and student together: the first half of a batch is exact, the second half approximated."""

    _paired = False  # batches are whole until the first layer, where teacher and student part

    def __init__(self, network: Network, method: str):
        super().__init__(network)
        self._method = method
        self.fitted: dict[str, Weighted] = {}  # nodes of the student, by name, where they differ from the teacher's

    def begin(self, images: np.ndarray) -> State:
        """The state at the first layer, with every tensor twice."""
        parts = [self.start(torch.tensor(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors}
        self._paired = True
        return State(0, {name: in_order(torch.cat([codes, codes])) for name, codes in tensors.items()})

    def _tap(self, x, images, codes):
        exact, student = x.chunk(2)
        return in_order(torch.cat([exact, super()._tap(student, len(student), codes)]))

    def _energy(self, x: torch.Tensor) -> None:
        """Nobody looks at attention here."""

    def _weighted(self, node: Weighted, x: torch.Tensor) -> torch.Tensor:
        teacher, student = x.chunk(2)
        if not self._paired or torch.equal(teacher, student):
            return super()._weighted(node, x)
        # Sums lie below 2**30: an int32 takes half the memory of the float64 that they come in.
        sums = [[self._sums(node, part).int() for part in half.split(CHUNK)] for half in (teacher, student)]
        self.fitted[node.name] = _fitted(node, _moments(*sums), self._method)
        outputs = []
        for owner, parts in zip((node, self.fitted[node.name]), sums, strict=True):
            affine = self._affine_of(owner)
            outputs += [self._requantised(owner, part.double(), *affine) for part in parts]
        return in_order(torch.cat(outputs))


@dataclass(frozen=True)
class _Moments:
    """Of a node's sums of products over images and places, the teacher's x and the student's y: `(out,) float64`."""

    mean_x: np.ndarray
    mean_y: np.ndarray
    var_x: np.ndarray
    var_y: np.ndarray
    covariance: np.ndarray


def _moments(teacher: list[torch.Tensor], student: list[torch.Tensor]) -> _Moments:
    """The moments of integers `(n, out, ...) int32`, in chunks.

    All that is added up is an integer, centred so that totals stay below 2**53 for any number of images that fits
    memory: no order of the additions, and so no machine, changes a bit.
    """
    rows = [[part.movedim(1, -1).flatten(0, -2) for part in parts] for parts in (teacher, student)]
    count = sum(len(part) for part in rows[0])
    centres = [torch.round(sum(part.double().sum(0) for part in parts) / count) for parts in rows]
    totals = torch.zeros(5, len(centres[0]), dtype=torch.float64)
    for x, y in zip(*rows, strict=True):
        x, y = x - centres[0], y - centres[1]
        totals += torch.stack([x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)])
    x, y, xx, yy, xy = (totals / count).numpy()
    centre_x, centre_y = (centre.numpy() for centre in centres)
    return _Moments(centre_x + x, centre_y + y, xx - x * x, yy - y * y, xy - x * y)


def _fitted(node: Weighted, moments: _Moments, method: str) -> Weighted:
    """The node with the student's numbers; a channel that never varies keeps the teacher's."""
    varies = (moments.var_x > 0) & (moments.var_y > 0)
    gain = np.ones(len(node.bias))
    if method == "deviation":
        gain = np.sqrt(_ratio(moments.var_x, moments.var_y, varies))
    elif method == "least-squares":
        gain = _ratio(moments.covariance, moments.var_y, varies & (moments.covariance > 0))
    made = with_multiplier(node, np.where(varies, node.multiplier * gain, node.multiplier))
    wanted = (moments.mean_x + node.bias) * node.multiplier / made.multiplier - moments.mean_y
    return with_bias(made, np.where(varies, wanted, node.bias))


def _ratio(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A quotient, and 1 elsewhere."""
    return np.divide(above, below, out=np.ones_like(above), where=where)
