"""How far a student's outputs are from its teacher's: knowledge distillation and attention transfer.

Each number here has the same bits on every machine, in any order and any chunks of the images. What can be an integer
is one; exp and log are those of `elementary`; a mean over images is the correctly rounded sum, divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from approx_env.scoring import elementary

SOFT_ACCURACY_SHARPNESS = 8.0
INTERVAL = 1.96  # standard errors: 95 %
Logits = torch.Tensor | np.ndarray  # (n, classes)


def kd_loss(student: Logits, teacher: Logits, temperature: float = 2.0) -> float:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over images; lower is better, 0 on equal logits.

    Args:
        student, teacher: logits `(n, classes)`.
        temperature: T > 0.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """
    student_log, teacher_log = (
        elementary.log_softmax(np.asarray(logits, np.float64) / temperature) for logits in (student, teacher)
    )
    divergence = elementary.exp(teacher_log) * (teacher_log - student_log)
    return temperature**2 * elementary.mean(divergence.cumsum(1)[:, -1])


def attention_distances(student: torch.Tensor, teacher: torch.Tensor) -> np.ndarray:
    """Squared L2 distance of the attention maps of each image: `(n, p) int64` twice -> `(n,) float64` in [0, 2].

    An attention map is an image's energy, divided by its L2 norm; a map of zeros stays one. The energy is the sum over
    channels of squared activations at each of p places, or, for a linear layer, each activation's square. The scale
    cancels, so codes will do. For maps of norm 1 the distance is `2 - 2 s.t / (|s| |t|)`, and its products of integers
    are exact.

    Source: Zagoruyko & Komodakis, ICLR 2017, eq. 2.
    """
    s, t = (energy.cpu().numpy().astype(np.int64, copy=False) for energy in (student, teacher))
    ss, tt, st = ((a * b).sum(1).astype(np.float64) for a, b in ((s, s), (t, t), (s, t)))
    norms = np.sqrt(ss * tt)  # of equal maps exactly `st`, so that their distance is 0
    cosine = np.divide(st, norms, out=np.zeros_like(norms), where=norms > 0)
    ones = (ss > 0).astype(np.float64) + (tt > 0)
    return np.maximum(ones - 2 * cosine, 0.0)


def hard_accuracy(logits: Logits, labels: np.ndarray | torch.Tensor) -> float:
    """Share of images in [0, 1] whose largest logit is the label's (of equal ones the first counts)."""
    return int((np.asarray(logits).argmax(1) == np.asarray(labels)).sum()) / len(labels)


def class_accuracies(logits: Logits, labels: np.ndarray | torch.Tensor, classes: int) -> list[float | None]:
    """`hard_accuracy` of the images of each class; None of a class without images."""
    right, labels = np.asarray(logits).argmax(1) == np.asarray(labels), np.asarray(labels)
    return [float(right[labels == each].mean()) if (labels == each).any() else None for each in range(classes)]


def class_changes(
    student: Logits, teacher: Logits, labels: np.ndarray | torch.Tensor, names: Sequence[str]
) -> list[dict[str, Any]]:
    """What each class gains or loses, in the order of labels.

    Args:
        student, teacher: logits `(n, classes)`.
        names: of the classes.

    Returns:
        `class`, `images`, `acc_teacher` and `acc_student` in [0, 1], and `change_points`. The last three are None of a
        class without images.
    """
    both = (class_accuracies(logits, labels, len(names)) for logits in (teacher, student))
    return [
        {"class": name, "images": int((np.asarray(labels) == label).sum()), "acc_teacher": before, "acc_student": after,
         "change_points": None if before is None else 100 * (after - before)}
        for label, (name, before, after) in enumerate(zip(names, *both, strict=True))
    ]  # fmt: skip


def with_interval(drop: float, error: float) -> str:
    """A drop with its 95 % interval, from its standard error, both in percentage points.

    >>> with_interval(1.0, 0.5)
    '1.00 ± 0.98'
    """
    return f"{drop:.2f} ± {INTERVAL * error:.2f}"


def drop_error_points(student: Logits, teacher: Logits, labels: np.ndarray | torch.Tensor) -> float:
    """Standard error of the drop from teacher to student, percentage points.

    Both saw the same images, so that only those count that one of them alone gets right: `b` the teacher, `c` the
    student. Half an image is added to each of the four counts. So no disagreement among few images is no certainty.

        sqrt(b + c - (b - c)^2 / n) / n

    Source: Agresti and Min, Statistics in Medicine 24, 2005, section 2, of McNemar's setting.
    """
    right, expected = (np.asarray(logits).argmax(1) == np.asarray(labels) for logits in (student, teacher))
    b, c, n = float((expected & ~right).sum()) + 0.5, float((right & ~expected).sum()) + 0.5, len(right) + 2
    return 100 * math.sqrt(b + c - (b - c) ** 2 / n) / n


def soft_accuracy(logits: Logits, labels: np.ndarray | torch.Tensor) -> float:
    """Mean softmax of 8 x logits at the label, in [0, 1]: an accuracy that also moves when no prediction flips."""
    logs = elementary.log_softmax(SOFT_ACCURACY_SHARPNESS * np.asarray(logits, np.float64))
    return elementary.mean(elementary.exp(logs[np.arange(len(logs)), np.asarray(labels)]))
