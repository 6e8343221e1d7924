"""Scores configurations on a fixed set of images: the one function behind every search algorithm.

    return = accuracy - kd_weight * KD - at_weight * AT

The teacher's outputs and the first layer's codes, the same for all configurations, are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from approx_env import cost, distill, kernels, tap
from approx_env.calibration import Calibration
from approx_env.engine import Engine, State, rows
from approx_env.network import Network, pool_first

Configuration = Sequence[Sequence[int]]  # (t1, v1, t2, v2) of every layer, in forward order
CHUNK = 128  # images that pass a segment together


@dataclass(frozen=True)
class Reward:
    """How the parts of a score add up to its return."""

    accuracy: str = "hard"  # 'hard' or 'soft': which accuracy the return rewards
    kd_temperature: float = 2.0  # T of the KD loss, > 0
    kd_weight: float = 1.0  # >= 0
    at_weight: float = 1.0  # >= 0


@dataclass(frozen=True)
class Score:
    """What one configuration is worth on the evaluator's images."""

    accuracy: float  # share of images that the student gets right, in [0, 1]
    soft_accuracy: float  # mean sharpened probability of the label, in [0, 1]
    drop_points: float  # teacher accuracy - student accuracy, percentage points
    kd: float  # KD loss, >= 0
    at: float  # AT loss, summed over the attention layers, >= 0
    return_: float  # accuracy - kd_weight * kd - at_weight * at
    layer_shares: np.ndarray  # (layers, 4) float64: shares of multiply-accumulates on zero, v1, v2, exact activations
    shares: np.ndarray  # (4,) float64: the same over all layers together


@dataclass(frozen=True)
class Problem:
    """All that decides what a configuration scores, as plain arrays that travel between processes."""

    network: Network  # the INT8 teacher
    calibration: Calibration  # fixes each layer's tmax
    images: np.ndarray  # (n, c, h, w) uint8
    labels: np.ndarray  # (n,) int64
    reward: Reward  # how a return is made


class Evaluator:
    """A problem made ready to score configurations on this machine."""

    def __init__(self, problem: Problem):
        images = problem.images
        self.reward = problem.reward
        self.calibration = problem.calibration
        self.labels = torch.tensor(problem.labels)
        self.network = pool_first(problem.network)
        self.readers = cost.readers(self.network)
        self.covered = cost.covered(self.network, self.readers)
        self.engine = Engine(self.network, {reader.tensor for reader in self.readers})
        self.starts = [self.engine.start(torch.tensor(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]
        self.teacher_maps: dict[str, list[torch.Tensor]] = {name: [] for name in self.network.attention}
        logits = []
        for state in self.starts:
            for name in self.network.layers:
                state = self.engine.advance(state, None)
                if name in self.teacher_maps:
                    self.teacher_maps[name].append(distill.attention_map(state[name]))
            logits.append(self.engine.logits(state))
        self.teacher_logits = torch.cat(logits)
        self.teacher_accuracy = distill.hard_accuracy(self.teacher_logits, self.labels)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the approximated layers."""
        return self.network.layers

    def begin(self) -> Evaluation:
        """Starts to score one configuration, layer by layer."""
        return Evaluation(self)

    def evaluate(self, configuration: Configuration) -> Score:
        """Scores a whole configuration.

        Raises:
            ValueError: codes missing, too many or invalid; nothing is computed then.
        """
        tmax = self.calibration.tmax
        if len(configuration) != len(tmax):
            raise ValueError(f"a configuration has codes for {len(tmax)} layers, got {len(configuration)}")
        for codes, limit in zip(configuration, tmax, strict=True):
            tap.check(codes, limit)
        evaluation = self.begin()
        for codes in configuration:
            evaluation.advance(codes)
        return evaluation.score


class Evaluation:
    """One configuration on its way through the network."""

    def __init__(self, evaluator: Evaluator):
        self._evaluator = evaluator
        self._states: list[State] = evaluator.starts
        self._counts = np.zeros((len(evaluator.layers), len(cost.KINDS)), np.int64)
        self._at = 0.0
        self._return = 0.0
        self.layer = 0  # index of the next layer
        self.score: Score | None = None  # once every layer has its codes

    def advance(self, codes: Sequence[int]) -> float:
        """Sets the next layer's codes, runs on to the layer after it, and returns the reward of this step.

        The reward is minus the weighted AT term at an attention layer; the last step adds accuracy - kd_weight * KD.
        The rewards' sum, taken in order, is the return, exactly.

        Raises:
            ValueError: invalid codes; nothing changes then.
        """
        owner, name = self._evaluator, self._evaluator.layers[self.layer]
        tmax = owner.calibration.tmax[self.layer]
        tap.check(codes, tmax)
        self._states = [owner.engine.advance(state, codes, tmax) for state in self._states]
        self._tally(name, codes, tmax)
        reward = 0.0
        if name in owner.teacher_maps:
            term = self._attention_term(name)
            self._at += term
            reward -= owner.reward.at_weight * term
        self.layer += 1
        if self.layer < len(owner.layers):
            self._return += reward
            return reward
        outcome = self._outcome()
        reward += outcome[f"{'soft_' if owner.reward.accuracy == 'soft' else ''}accuracy"]
        reward -= owner.reward.kd_weight * outcome["kd"]
        self._return += reward
        self.score = Score(**outcome, at=self._at, return_=self._return)
        return reward

    def _attention_term(self, name: str) -> float:
        teacher = self._evaluator.teacher_maps[name]
        distances = [
            distill.attention_distances(distill.attention_map(state[name]), kept)
            for state, kept in zip(self._states, teacher, strict=True)
        ]
        return float(np.concatenate(distances).mean())

    def _tally(self, name: str, codes: Sequence[int], tmax: int) -> None:
        # Behind TAP the kinds are 0, v1, v2 and above tmax.
        limits = (np.uint8(0), np.uint8(codes[1]), np.uint8(tmax))
        for reader in self._evaluator.readers:
            if reader.layer == name:
                for state in self._states:
                    kernels.tally(rows(state[reader.tensor]), *limits, reader.weights, self._counts[self.layer])

    def _outcome(self) -> dict:
        """What the finished student's logits and counts say."""
        owner = self._evaluator
        logits = torch.cat([owner.engine.logits(state) for state in self._states])
        self._states = []
        accuracy = distill.hard_accuracy(logits, owner.labels)
        return {
            "accuracy": accuracy,
            "soft_accuracy": distill.soft_accuracy(logits, owner.labels),
            "drop_points": 100 * (owner.teacher_accuracy - accuracy),
            "kd": distill.kd_loss(logits, owner.teacher_logits, owner.reward.kd_temperature),
            "layer_shares": cost.shares(self._counts),
            "shares": cost.shares(self._counts.sum(0)),
        }
