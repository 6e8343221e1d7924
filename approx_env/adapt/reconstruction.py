"""Codes that disturb KD and AT least, layer by layer, without scoring a single configuration.

A layer's codes `c` are counted, `n(c)`, and weighted, `W(c)`: the squared gradient of KD + AT, added up over all places
where the code is `c`. The gradient is taken in the student as it then is: earlier layers have the codes that were
found, this layer and later ones quintile. The codes found minimise

    sum W (TAP(c) - c)^2 / sum W c^2  +  LINEAR (mean error^2 + slope error^2)

    mean error  = sum n (TAP(c) - c)   / sum n c
    slope error = sum n c (TAP(c) - c) / sum n c^2

The first term alone shrinks activations: each segment's best value is its mean, and the lowest segment has none. Such
an error has the same sign everywhere, so that the sums of the next layer add it up, while the rest averages out. So
both errors that are linear in `c` cost more. Measured on CIFAR-10 (JPEG), on 4,096 validation images, where a drop has
a standard error of 0.4 points; proposals are the mean of two sets of 128 calibration images:

| codes (KD, AT, drop in points) | AlexNet | SqueezeNet |
|---|---|---|
| quintile | 0.0729, 0.225, 3.2 | 0.0495, 0.0267, 1.1 |
| LINEAR = 0 | 0.0638, 0.229, 2.5 | 0.0670, 0.0307, 1.5 |
| LINEAR = 100 | 0.0624, 0.209, 2.7 | 0.0518, 0.0298, 1.7 |

So it is better than quintile on AlexNet, on which LINEAR was chosen, and not on SqueezeNet.

Source: Nagel et al., "Up or Down?", ICML 2020, and Li et al., "BRECQ", ICLR 2021 (layer by layer, squared gradients as
the diagonal of the Hessian); Nagel et al., "Data-free quantization", ICCV 2019, section 4.2 (the mean error).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from approx_env import tap
from approx_env.adapt.finetune import kd_loss
from approx_env.adapt.simulation import Simulation
from approx_env.int8.network import Network
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.reward import Reward

BATCH = 64  # images whose gradients are in memory together
LINEAR = 100.0  # weight of the squared mean and slope errors


def propose(
    network: Network, calibration: Calibration, images: np.ndarray, reward: Reward
) -> tuple[tuple[int, int, int, int], ...]:
    """Codes `(t1, v1, t2, v2)` of every layer, in forward order, under the calibrated tmax.

    Args:
        network: the exact teacher.
        calibration: of its layers.
        images: calibration images `(n, c, h, w) uint8`; 128 will do.
        reward: weighs KD and AT. Where it weighs neither, both count as one.
    """
    gradients = _Gradients(network, images, reward)
    configuration = {layer.name: (layer.quintile, layer.tmax) for layer in calibration.layers}
    for layer in calibration.layers:
        weights, counts = gradients.weights(configuration, layer.name)
        configuration[layer.name] = (best_codes(weights, counts, layer.tmax), layer.tmax)
    return tuple(codes for codes, _ in configuration.values())


def best_codes(weights: np.ndarray, counts: np.ndarray, tmax: int) -> tuple[int, int, int, int]:
    """The valid codes with the lowest error, as the module has it; none is left out.

    Args:
        weights: `(256,)`, W of each code, >= 0.
        counts: `(256,)`, n of each code, >= 0. If no code in 1..tmax has both, all count alike.
    """
    codes = np.arange(tmax + 1.0)
    weights, counts = weights[: tmax + 1], counts[: tmax + 1]
    if not (weights[1:].any() and counts[1:].any()):
        weights = counts = np.ones(tmax + 1)
    squares = _sums(weights / (weights * codes**2).sum(), codes)
    mean = _sums(counts / (counts * codes).sum(), codes)[0]
    slope = _sums(counts * codes / (counts * codes**2).sum(), codes)[0]
    lowest, found = np.inf, (1, 2, 3, 4)
    for t1 in range(1, tmax - 2):
        cost, v2 = _costs(squares, mean, slope, t1)
        v1, t2 = np.unravel_index(cost.argmin(), cost.shape)
        if cost[v1, t2] < lowest:
            lowest, found = cost[v1, t2], (t1, int(v1), int(t2), int(v2[v1, t2]))
    return found


def _sums(weights: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of weights, and of weights times codes, up to each code."""
    return np.cumsum(weights), np.cumsum(weights * codes)


def _costs(
    squares: tuple[np.ndarray, np.ndarray], mean: np.ndarray, slope: np.ndarray, t1: int
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest error with `t1` for each v1 and t2, infinite where codes are not valid, and its v2.

    Args:
        squares: sums of W / (sum W c^2), and of W c / (sum W c^2), up to each code, `(tmax + 1,)` each.
        mean, slope: sums of n / (sum n c), and of n c / (sum n c^2), up to each code.

    Returns:
        Both `(tmax + 1, tmax + 1)`: a row for each v1, a column for each t2.
    """
    t2, tmax = np.arange(len(mean)), len(mean) - 1
    v1 = t2[:, None]
    (weight1, first1, mean1, slope1), (weight2, first2, mean2, slope2) = (
        [sums[high] - sums[low] for sums in (*squares, mean, slope)] for low, high in ((t1, t2), (t2, tmax))
    )  # of the segment of v1, and of that of v2
    mean_error, slope_error = v1 * mean1 - 1, v1 * slope1 - 1  # without v2
    # The error is quadratic in v2. So the best whole number is the lowest point, rounded, or the bound before it.
    bend = weight2 + LINEAR * (mean2**2 + slope2**2)
    pull = first2 - LINEAR * (mean_error * mean2 + slope_error * slope2)
    v2 = np.clip(np.rint(np.divide(pull, bend, out=np.zeros_like(pull), where=bend > 0)), t2 + 1, tmax)
    mean_error, slope_error = mean_error + v2 * mean2, slope_error + v2 * slope2
    cost = v1**2 * weight1 - 2 * v1 * first1 + v2**2 * weight2 - 2 * v2 * first2 + 1
    valid = (t1 < v1) & (v1 < t2) & (t2 < tmax)
    return np.where(valid, cost + LINEAR * (mean_error**2 + slope_error**2), np.inf), v2


class _Gradients:
    """Squared gradients of KD + AT over images, by code; the teacher runs once."""

    def __init__(self, network: Network, images: np.ndarray, reward: Reward):
        self._network, self._temperature = network, reward.kd_temperature
        self._weights = (reward.kd_weight, reward.at_weight) if reward.kd_weight or reward.at_weight else (1.0, 1.0)
        self._batches = torch.from_numpy(images).split(BATCH)
        teacher = Simulation(network, {}).requires_grad_(False)
        with torch.no_grad():
            self._taught = [self._features(teacher.outputs(pixels)) for pixels in self._batches]

    def weights(self, configuration: dict[str, tuple[Sequence[int], int]], layer: str) -> tuple[np.ndarray, np.ndarray]:
        """W and n of a layer, `(256,) float64` each, under codes and tmax of every layer."""
        student = Simulation(self._network, configuration).requires_grad_(False)
        site = self._network.by_name[layer]
        weights, counts = torch.zeros(2, tap.CODE_COUNT, dtype=torch.float64)
        for pixels, taught in zip(self._batches, self._taught, strict=True):
            before = student.onwards(student.input(pixels), last=layer)
            start = before[layer].clone().requires_grad_()
            after = self._features(student.onwards(before | {layer: start}))
            (gradient,) = torch.autograd.grad(self._loss(after, taught), start)
            codes = before[site.inputs[0]].long().flatten()
            weights += torch.bincount(codes, gradient.double().flatten() ** 2, minlength=tap.CODE_COUNT)
            counts += torch.bincount(codes, minlength=tap.CODE_COUNT)
        return weights.numpy(), counts.numpy()

    def _features(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Logits, and the attention map of each attention layer, `(n, p)`."""
        maps = [tensors[name].double() for name in self._network.attention]
        energies = [(x * x).sum(1).flatten(1) if x.dim() == 4 else x * x for x in maps]
        return [tensors[self._network.nodes[-1].name] * self._network.logit_scale, *map(F.normalize, energies)]

    def _loss(self, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
        """KD + AT, summed over images."""
        (logits, *maps), (wanted, *targets) = student, teacher
        kd = len(logits) * kd_loss(logits, wanted, self._temperature)
        at = sum(((one - other) ** 2).sum() for one, other in zip(maps, targets, strict=True))
        kd_weight, at_weight = self._weights
        return kd_weight * kd + at_weight * at
