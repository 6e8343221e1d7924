"""Scores configurations on a fixed set of images: the one function behind every search algorithm.

    return = accuracy - kd_weight * KD - at_weight * AT

A score has the same bits on every machine, for any chunks of the images and any number of threads: `distill` says how
it is added up.

The teacher's outputs and the first layer's codes, the same for all configurations, are computed once. A configuration
that begins like the one before it starts where they part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from approx_env import tap
from approx_env.engines import build as engines
from approx_env.engines import memory
from approx_env.engines.base import Engine, State
from approx_env.int8 import cost, energy
from approx_env.int8.energy import Energy
from approx_env.int8.network import Network, pool_first
from approx_env.lookup import Lookup
from approx_env.scoring import distill, elementary
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.reward import Reward

Tables = Sequence[Lookup]  # of every layer, in forward order: what a baseline does
FEW = 16  # images that are prepared together
CACHE_BYTES = 128 * 2**20  # of the last configuration's states


@dataclass(frozen=True)
class Score:
    """What one configuration is worth on the evaluator's images."""

    accuracy: float  # share of images that the student gets right, in [0, 1]
    soft_accuracy: float  # mean sharpened probability of the label, in [0, 1]
    drop_points: float  # teacher accuracy - student accuracy, percentage points
    kd: float  # KD loss, >= 0
    at: float  # AT loss, summed over the attention layers, >= 0
    return_: float  # accuracy - kd_weight * kd - at_weight * at, as the reward has them
    layer_shares: np.ndarray  # (layers, 4) float64: shares of multiply-accumulates on zero, v1, v2, exact activations
    shares: np.ndarray  # (4,) float64: the same over all layers together
    drop_error_points: float  # standard error of drop_points; see `distill.drop_error_points`
    layer_zero_natural: np.ndarray  # (layers,) float64: share that reads zeros of the exact network, on these images
    zero_natural: float  # the same over all layers together
    covered: float  # share of all the network's multiplications that these layers feed
    relative_energy_sites: float  # energy of the multiplications that they feed over the exact network's, see `Energy`
    relative_energy: float  # the same over all multiplications; those that they do not feed are exact
    mac_exact_all: float  # share of all multiplications that stay exact, those that no layer feeds among them


@dataclass(frozen=True)
class Problem:
    """All that decides what a configuration scores, as plain arrays that travel between processes."""

    network: Network  # the INT8 teacher
    calibration: Calibration  # fixes each layer's tmax, where a configuration does not
    images: np.ndarray  # (n, c, h, w) uint8
    labels: np.ndarray  # (n,) int64
    reward: Reward  # how a return is made
    engine: str = "vector"  # see `engines.build`
    device: str = "cpu"
    energy: Energy = field(default_factory=lambda: energy.read(energy.SHIPPED[0]))  # of the multiplications
    student: Network | None = None  # whose weights configurations run with; same sites (None: the teacher's own)


@dataclass
class Step:
    """What one layer's codes led to."""

    codes: np.ndarray | Lookup | None  # (k, 5), or the table of a baseline; None where the layer stays exact
    counts: np.ndarray  # (k, 4) int64
    at: list[float] | None  # AT terms of the k configurations, at an attention layer
    states: list[State] | None  # behind the layer, one a chunk of images; None once dropped

    @property
    def size_bytes(self) -> int:
        """Memory that the states hold."""
        return sum(state.size_bytes for state in self.states or ())


class Evaluator:
    """A problem made ready to score configurations on this machine.

    From then on this process keeps the memory that it frees (`memory.keep_freed_memory`): an episode needs the same
    buffers again and again, and took three times as long with fresh ones.

    Args:
        problem: what to score on.
        cache_bytes: how much of the last configuration's states to keep, >= 0; the deepest layers' stay longest.
        threads: that take chunks of images through the network at the same time; no bit depends on them.
    """

    def __init__(self, problem: Problem, cache_bytes: int = CACHE_BYTES, threads: int = 1):
        memory.keep_freed_memory()
        self._problem = problem
        self.reward, self.energy = problem.reward, problem.energy
        self.calibration = problem.calibration
        self.labels = torch.tensor(problem.labels)
        self.teacher_energies: dict[str, list[torch.Tensor]] = {name: [] for name in problem.network.attention}
        self.exact_counts = np.zeros((len(problem.network.layers), len(cost.KINDS)), np.int64)  # of the exact teacher
        self.state_bytes = [0] * len(problem.network.layers)  # of all images behind each layer, one configuration
        self.cache_bytes, self._threads = cache_bytes, threads
        self._take(problem.network)
        self.teacher_logits = torch.cat(self._taught())
        self.teacher_accuracy = distill.hard_accuracy(self.teacher_logits, self.labels)
        if problem.student is not None:
            self._take(problem.student)
        memory.give_back()

    def with_student(self, student: Network | None) -> Evaluator:
        """One of the same problem for another student; what the exact teacher said is shared.

        Raises:
            ValueError: its layers or attention layers are not the teacher's.
        """
        made = copy.copy(self)
        made._take(student or self._problem.network)
        return made

    def _take(self, network: Network) -> None:
        """Makes a network ready to be approximated."""
        own, problem = pool_first(network), self._problem
        calibrated = tuple(layer.name for layer in problem.calibration.layers)
        if calibrated != own.layers:
            raise ValueError(f"the calibration must be of layers {own.layers}, in this order, got {calibrated}")
        if own.attention != problem.network.attention:
            raise ValueError(f"a student must have its teacher's attention layers {problem.network.attention}")
        self.network = own
        self.readers = cost.readers(own)
        self.covered = cost.covered(own, self.readers)
        self.engine = engines.build(own, problem.engine, problem.device, self.readers)
        self.last: list[Step] = []  # of the configuration scored last, as far as it got
        chunk = self.engine.chunk
        chunks = (problem.images[i : i + chunk] for i in range(0, len(problem.images), chunk))
        self.starts = [_start(self.engine, images) for images in chunks]

    def _taught(self) -> list[torch.Tensor]:
        """The exact teacher's logits of each chunk of images; keeps its energies and counts its products."""
        logits = []
        for state in self.starts:
            for place, (counts, name) in enumerate(zip(self.exact_counts, self.network.layers, strict=True)):
                state = self.engine.advance(state, None)
                counts += state.counts[0]
                self.state_bytes[place] += state.size_bytes
                if name in self.teacher_energies:
                    self.teacher_energies[name].append(state.energy)
            logits.append(self.engine.logits(state))
        return logits

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the approximated layers."""
        return self.network.layers

    def keep(self, steps: list[Step]) -> None:
        """Remembers the steps of a configuration, and drops the earliest layers' states beyond `cache_bytes`."""
        self.last = list(steps)
        for step in steps[: self.beyond([step.size_bytes for step in steps])]:
            step.states = None

    def beyond(self, sizes: Sequence[int]) -> int:
        """How many of the earliest steps are dropped, of these sizes in bytes; the last one stays."""
        excess = sum(sizes) - self.cache_bytes
        for place, size in enumerate(sizes):
            if excess <= 0 or place == len(sizes) - 1:
                return place
            excess -= size
        return 0

    def each(self, function: Callable, chunks: Sequence) -> Iterator:
        """What a function makes of each of the chunks, in their order."""
        return _pool(self._threads).map(function, chunks) if self._threads > 1 else map(function, chunks)

    def begin(self, configurations: int = 1) -> Evaluation:
        """Starts to score configurations in lockstep, layer by layer."""
        return Evaluation(self, configurations)

    def evaluate(self, configuration: Configuration | Tables) -> Score:
        """Scores a whole configuration, or a baseline by its tables. Where it has None for a layer, that stays exact.

        Raises:
            ValueError: codes missing, too many or invalid; nothing is computed then.
        """
        return self.taken(configuration).scores[0]

    def taken(self, configuration: Configuration | Tables) -> Evaluation:
        """Takes a whole configuration through the network, as `evaluate` does, to ask more of it than its score.

        Raises:
            ValueError: as `evaluate`.
        """
        tmax = self.calibration.tmax
        if len(configuration) != len(tmax):
            raise ValueError(f"a configuration has codes for {len(tmax)} layers, got {len(configuration)}")
        for codes, limit in zip(configuration, tmax, strict=True):
            if not _alone(codes):
                tap.check(codes, limit)
        evaluation = self.begin()
        evaluation.complete([codes if _alone(codes) else [codes] for codes in configuration])
        return evaluation


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for the whole process: each thread's engine keeps memory of its own."""
    return ThreadPoolExecutor(threads, "chunks")


def _start(engine: Engine, images: np.ndarray) -> State:
    """The state at the first layer, a few images at a time: what comes before it is large, and soon forgotten."""
    parts = [engine.start(torch.tensor(images[i : i + FEW])) for i in range(0, len(images), FEW)]
    return State(0, {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})


class Evaluation:
    """One configuration, or several in lockstep, on the way through the network."""

    def __init__(self, evaluator: Evaluator, configurations: int):
        self._evaluator = evaluator
        self._steps: list[Step] = []
        self._known = evaluator.last  # steps that may be repeated
        self._returns = [0.0] * configurations
        self.scores: list[Score] | None = None  # of each configuration, once every layer has its codes

    @property
    def layer(self) -> int:
        """Index of the next layer."""
        return len(self._steps)

    def logits(self) -> list[torch.Tensor]:
        """Each configuration's logits `(n, classes) float64`, once every layer has its codes."""
        engine = self._evaluator.engine
        chunks = [engine.logits(state).chunk(len(self._returns)) for state in self._steps[-1].states]
        return [torch.cat([chunk[k] for chunk in chunks]) for k in range(len(self._returns))]

    def advance(self, codes: Sequence[Sequence[int]] | np.ndarray | Lookup | None) -> list[float]:
        """Sets the next layer's codes, runs on to the layer after it, and returns the k rewards of this step.

        Codes are `(k, 4)`, or `(k, 5)` with each configuration's own tmax.

        A baseline gives its table instead of codes, and None leaves the layer exact: neither goes in lockstep.

        A reward is minus the weighted AT term at an attention layer; the last step adds accuracy - kd_weight * KD.
        A configuration's rewards, summed in order, are its return, exactly.

        Raises:
            ValueError: invalid codes; nothing changes then.
        """
        codes = self._checked(codes, self.layer)
        return self._add(self._repeated(codes) or self._computed([codes])[0])

    def complete(self, several: Sequence[Sequence[Sequence[int]] | np.ndarray | Lookup | None]) -> None:
        """Does what `advance` does with each of the codes of all layers that are left.

        A chunk of images goes through all of them before the next one does. What is read is then still in the caches:
        SqueezeNet's episode took 16 % less (1,024 images).

        Raises:
            ValueError: invalid codes; nothing changes then.
        """
        several = [self._checked(codes, layer) for layer, codes in enumerate(several, self.layer)]
        while several and (step := self._repeated(several[0])):
            self._add(step)
            several.pop(0)
        self._evaluator.keep(self._steps)  # not the states of the configuration before, too
        for step in self._computed(several) if several else ():
            self._add(step)

    def _add(self, step: Step) -> list[float]:
        """Takes a step, and returns its rewards."""
        owner, count = self._evaluator, len(self._returns)
        self._steps.append(step)
        owner.keep(self._steps)
        weight = owner.reward.at_weight
        rewards = [0.0 - weight * term for term in step.at] if step.at else [0.0] * count
        if self.layer == len(owner.layers):
            outcomes = self._outcomes()
            accuracy = f"{'soft_' if owner.reward.accuracy == 'soft' else ''}accuracy"
            for k, outcome in enumerate(outcomes):
                if owner.reward.accuracy != "none":
                    rewards[k] += outcome[accuracy]
                rewards[k] -= owner.reward.kd_weight * outcome["kd"]
        self._returns = [total + reward for total, reward in zip(self._returns, rewards, strict=True)]
        if self.layer == len(owner.layers):
            self.scores = [
                Score(**outcome, return_=total) for outcome, total in zip(outcomes, self._returns, strict=True)
            ]
        return rewards

    def _checked(
        self, codes: Sequence[Sequence[int]] | np.ndarray | Lookup | None, layer: int
    ) -> np.ndarray | Lookup | None:
        """A layer's codes, once they are known to be valid."""
        count = 1 if _alone(codes) else len(codes)
        if count != len(self._returns):
            raise ValueError(f"{len(self._returns)} configurations are in lockstep, and codes for {count} came")
        if _alone(codes):
            return codes
        tmax = self._evaluator.calibration.tmax[layer]
        for one in codes:
            tap.check(one, tmax)
        return tap.complete(codes, tmax)

    def _repeated(self, codes: np.ndarray | Lookup | None) -> Step | None:
        """The step of the configuration before this one, if all codes (or the very tables) so far are the same."""
        if self.layer < len(self._known) and np.array_equal(self._known[self.layer].codes, codes):
            return self._known[self.layer]
        self._known = []
        return None

    def _computed(self, several: Sequence[np.ndarray | Lookup | None]) -> list[Step]:
        """Runs from the deepest layer whose states are there; of the steps that it makes, those to keep have states."""
        owner, count = self._evaluator, len(self._returns)
        names = owner.layers[self.layer : self.layer + len(several)]
        states, begin = list(owner.starts), 0
        for depth, step in enumerate(self._steps, 1):
            if step.states is not None:
                states, begin = list(step.states), depth
        if not owner.cache_bytes and self._steps:
            self._steps[-1].states = None  # each chunk's is freed as soon as it is used
        again = [step.codes for step in self._steps[begin:]]
        sizes = [step.size_bytes for step in self._steps]
        sizes += [count * size for size in owner.state_bytes[self.layer : self.layer + len(several)]]
        dropped = owner.beyond(sizes) - len(self._steps)

        def passed(chunk: int) -> list[tuple[np.ndarray, np.ndarray | None, State | None]]:
            """Of each step its counts, distances of attention maps at an attention layer, and a state to keep."""
            state, states[chunk] = states[chunk], None
            for codes in again:
                state = owner.engine.advance(state, codes)
            parts = []
            for place, (name, codes) in enumerate(zip(names, several, strict=True)):
                state, distances = owner.engine.advance(state, codes), None
                if teacher := owner.teacher_energies.get(name):
                    of_all = teacher[chunk].repeat(count, 1) if count > 1 else teacher[chunk]
                    distances = distill.attention_distances(state.energy, of_all).reshape(count, -1)
                parts.append((state.counts, distances, state if place >= dropped else None))
            return parts

        chunks = list(owner.each(passed, range(len(states))))
        return [self._step(codes, parts) for codes, parts in zip(several, zip(*chunks, strict=True), strict=True)]

    def _step(self, codes: np.ndarray | Lookup | None, parts: Sequence[tuple]) -> Step:
        """A step from what `passed` gives of each chunk."""
        counts, distances, states = zip(*parts, strict=True)
        at = None
        if distances[0] is not None:
            at = [elementary.mean(np.concatenate([part[k] for part in distances])) for k in range(len(self._returns))]
        return Step(codes, sum(counts), at, None if states[0] is None else list(states))

    def _outcomes(self) -> list[dict]:
        """What each finished student's logits and counts say."""
        return [self._outcome(k, logits) for k, logits in enumerate(self.logits())]

    def _outcome(self, k: int, logits: torch.Tensor) -> dict:
        owner = self._evaluator
        accuracy = distill.hard_accuracy(logits, owner.labels)
        counts = np.stack([step.counts[k] for step in self._steps])
        at = 0.0
        for step in self._steps:
            at += step.at[k] if step.at else 0.0
        shares, layer_natural, natural = (cost.shares(each) for each in (counts.sum(0), owner.exact_counts,
                                                                         owner.exact_counts.sum(0)))  # fmt: skip
        of_all = cost.of_all(shares, owner.covered)
        return {
            "accuracy": accuracy,
            "soft_accuracy": distill.soft_accuracy(logits, owner.labels),
            "drop_points": 100 * (owner.teacher_accuracy - accuracy),
            "kd": distill.kd_loss(logits, owner.teacher_logits, owner.reward.kd_temperature),
            "at": at,
            "layer_shares": cost.shares(counts),
            "shares": shares,
            "drop_error_points": distill.drop_error_points(logits, owner.teacher_logits, owner.labels),
            "layer_zero_natural": layer_natural[:, 0],
            "zero_natural": float(natural[0]),
            "covered": owner.covered,
            "relative_energy_sites": owner.energy.relative(shares),
            "relative_energy": owner.energy.relative(of_all),
            "mac_exact_all": float(of_all[3]),
        }


def _alone(codes: Sequence | np.ndarray | Lookup | None) -> bool:
    """Whether this is a table, or None for an exact layer, which a configuration has only outside of lockstep."""
    return codes is None or isinstance(codes, Lookup)
