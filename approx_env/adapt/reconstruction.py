"""Codes that disturb KD and AT least, layer by layer, without scoring a single configuration.

A layer's codes `c` are weighted by the squared gradient `g` of KD + AT: `W(c)` adds it up over all places where the
code is `c`. The gradient is taken in the student as it then is: earlier layers have the codes that were found, this
layer and later ones quintile. The codes found minimise

    sum W(c) (TAP(c) - c)^2 / sum W(c) c^2  +  1000 (mean error^2 + slope error^2)

    mean error  = sum W(c) (TAP(c) - c)   / sum W(c) c
    slope error = sum W(c) c (TAP(c) - c) / sum W(c) c^2

The first term alone shrinks activations: each segment's best value is its mean, and the lowest segment has none. Such
an error has the same sign everywhere, so that the sums of the next layer add it up, while the rest averages out. So
both errors that are linear in `c` are nearly forbidden. Measured on CIFAR-10 (JPEG), 128 calibration images, KD, AT and
drop in points on 2,048 validation images, where a drop has a standard error of about 0.4:

| codes | AlexNet | SqueezeNet |
|---|---|---|
TABLE

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
from approx_env.scoring.evaluator import Reward

BATCH = 64  # images whose gradients are in memory together
LINEAR = 1000.0  # weight of the squared mean and slope errors


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
        weights = gradients.weights(configuration, layer.name)
        configuration[layer.name] = (best_codes(weights, layer.tmax), layer.tmax)
    return tuple(codes for codes, _ in configuration.values())


def best_codes(weights: np.ndarray, tmax: int) -> tuple[int, int, int, int]:
    """The valid codes with the lowest error, as the module has it; none is left out.

    Args:
        weights: `(256,) float64`, W of each code, >= 0. If none up to tmax is positive, all codes count alike.
    """
    codes = np.arange(tmax + 1.0)
    weights = weights[: tmax + 1] if weights[1 : tmax + 1].any() else np.ones(tmax + 1)
    sums = np.cumsum(weights), np.cumsum(weights * codes)
    energy = float((weights * codes**2).sum())
    lowest, found = np.inf, (1, 2, 3, 4)
    for t1 in range(1, tmax - 2):
        cost, v2 = _costs(sums, energy, t1)
        v1, t2 = np.unravel_index(cost.argmin(), cost.shape)
        if cost[v1, t2] < lowest:
            lowest, found = cost[v1, t2], (t1, int(v1), int(t2), int(v2[v1, t2]))
    return found


def _costs(sums: tuple[np.ndarray, np.ndarray], energy: float, t1: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest error with `t1` for each v1 and t2, infinite where codes are not valid, and its v2.

    Args:
        sums: of W and of W c up to each code, `(tmax + 1,)` each.
        energy: the sum of W c^2.

    Returns:
        Both `(tmax + 1, tmax + 1)`: a row for each v1, a column for each t2.
    """
    count, first = sums
    tmax, total = len(count) - 1, first[-1]
    v1, t2 = np.arange(tmax + 1)[:, None], np.arange(tmax + 1)
    count1, first1 = count - count[t1], first - first[t1]  # of the segment of v1
    count2, first2 = count[-1] - count, first[-1] - first  # of the segment of v2
    mean, slope = v1 * count1 / total - 1, v1 * first1 / energy - 1  # errors without v2
    # The error is quadratic in v2: its lowest whole number is the lowest number, rounded, or the bound before it.
    bend = count2 / energy + LINEAR * ((count2 / total) ** 2 + (first2 / energy) ** 2)
    pull = first2 / energy - LINEAR * (mean * count2 / total + slope * first2 / energy)
    v2 = np.clip(np.rint(np.divide(pull, bend, out=np.zeros_like(pull), where=bend > 0)), t2 + 1, tmax)
    mean, slope = mean + v2 * count2 / total, slope + v2 * first2 / energy
    squares = (v1**2 * count1 - 2 * v1 * first1 + v2**2 * count2 - 2 * v2 * first2) / energy + 1
    valid = (t1 < v1) & (v1 < t2) & (t2 < tmax)
    return np.where(valid, squares + LINEAR * (mean**2 + slope**2), np.inf), v2


class _Gradients:
    """Squared gradients of KD + AT over images, by code; the teacher runs once."""

    def __init__(self, network: Network, images: np.ndarray, reward: Reward):
        self._network, self._temperature = network, reward.kd_temperature
        self._weights = (reward.kd_weight, reward.at_weight) if reward.kd_weight or reward.at_weight else (1.0, 1.0)
        self._batches = torch.from_numpy(images).split(BATCH)
        teacher = Simulation(network, {}).requires_grad_(False)
        with torch.no_grad():
            self._taught = [self._features(teacher.outputs(pixels)) for pixels in self._batches]

    def weights(self, configuration: dict[str, tuple[Sequence[int], int]], layer: str) -> np.ndarray:
        """W of a layer, `(256,) float64`, under codes and tmax of every layer."""
        student = Simulation(self._network, configuration).requires_grad_(False)
        site, total = self._network.by_name[layer], torch.zeros(tap.CODE_COUNT, dtype=torch.float64)
        for pixels, taught in zip(self._batches, self._taught, strict=True):
            before = student.onwards(student.input(pixels), last=layer)
            start = before[layer].clone().requires_grad_()
            after = self._features(student.onwards(before | {layer: start}))
            (gradient,) = torch.autograd.grad(self._loss(after, taught), start)
            codes = before[site.inputs[0]].long().flatten()
            total += torch.bincount(codes, gradient.double().flatten() ** 2, minlength=tap.CODE_COUNT)
        return total.numpy()

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
