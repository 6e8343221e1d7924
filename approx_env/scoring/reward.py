"""How a score becomes a return; apart from the evaluator, so that who only keeps rows needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """How the parts of a score add up to its return."""

    accuracy: str = "hard"  # 'hard' or 'soft': which accuracy the return rewards
    kd_temperature: float = 2.0  # T of the KD loss, > 0
    kd_weight: float = 1.0  # >= 0
    at_weight: float = 1.0  # >= 0
