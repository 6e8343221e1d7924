"""How far a student's outputs are from its teacher's: knowledge distillation and attention transfer."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

SOFT_ACCURACY_SHARPNESS = 8.0


def kd_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> float:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over images; lower is better, 0 on equal logits.

    Args:
        student, teacher: logits `(n, classes)`.
        temperature: T > 0.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """
    student_log = F.log_softmax(student.double() / temperature, 1)
    teacher_log = F.log_softmax(teacher.double() / temperature, 1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(1)
    return temperature**2 * float(divergence.mean())


def attention_map(energy: torch.Tensor) -> torch.Tensor:
    """Each image's attention map: its energy `(n, p) float32`, divided by its L2 norm. An all-zero map stays zero.

    The energy is the sum over channels of squared activations at each of p places, or, for a linear layer, each
    activation's square; the scale cancels, so codes will do.

    Source: Zagoruyko & Komodakis, ICLR 2017, eq. 2.
    """
    return F.normalize(energy, dim=1)


def attention_distances(student: torch.Tensor, teacher: torch.Tensor) -> np.ndarray:
    """Squared L2 distance of the normalised maps of each image: `(n, p)` twice -> `(n,) float64` in [0, 2]."""
    return ((student.double() - teacher.double()) ** 2).sum(1).cpu().numpy()


def hard_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images in [0, 1] whose largest logit is the label's (of equal ones the first counts)."""
    return float((logits.argmax(1) == labels).double().mean())


def soft_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean softmax of 8 x logits at the label, in [0, 1]: an accuracy that also moves when no prediction flips."""
    probabilities = F.softmax(SOFT_ACCURACY_SHARPNESS * logits.double(), 1)
    return float(probabilities.gather(1, labels[:, None]).mean())
