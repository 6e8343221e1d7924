"""Trains a policy that proposes codes, over many problems: `python -m search.pretrain --help`.

A problem is a network with its sites, a tmax, and some of the search images. Tmax and images change from iteration to
iteration. An iteration draws configurations for each problem around what the policy proposes, and scores them. Then the
policy learns from how much better or worse each is than the others of its problem. `python -m benchmarks transfer`
keeps networks from the training, which tell how a policy does on what it has never seen.

Sources: Schulman et al. 2017, equation 7 (the clipped objective of PPO); Kool et al. 2019 (other samples of the same
problem as the baseline).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from approx_env.errors import InputError, exit_status, run_module
from search.workers import processes

if __name__ == "__main__":  # before the rest is loaded
    processes.prepare()
    os.environ.update(processes.SAME_BITS)
    sys.exit(run_module("search.pretrain"))

import numpy as np
import torch

from approx_env.int8.network import Network
from approx_env.int8.sites import CHOICES
from approx_env.options import integer, listed, option, parse
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.evaluator import Evaluator, Problem
from approx_env.scoring.reward import Reward
from approx_env.teachers import store
from search import config, job, proposal
from search.proposal import Policy
from search.results.folder import Folder

EPISODES = 16  # of a problem in an iteration, half of them mirrored
WIDTH = 0.15, 0.05  # standard deviation of draws around the policy's logits, in the first and in the last iteration
RATE, CLIP, EPOCHS = 2e-3, 0.2, 4  # the rate falls to nothing
PERCENTILES, OFFSETS = (85.0, 95.0), (0, 20)  # between which tmax is drawn
IMAGES = 64  # of a problem
REWARD = Reward("none")  # KD and AT: of so few images accuracy is too coarse
SMALLEST = 1e-9  # standard deviation of returns that is told from none
SHIPPED = ("squeezenet", "alexnet", "squeezenet_compact", "resnet8")


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    teachers: tuple[str, ...] = option(
        SHIPPED, "shipped networks, and .int8.json files", type=listed(str),
        kind="different names", metavar="LIST",
    )  # fmt: skip
    data_dir: str | None = option(None, "image folder of those that were not trained on digits", metavar="DIR")
    iterations: int = integer(150, "how often the policy learns", 1)
    seed: int = integer(0, "of the draws", 0, high=2**31 - 1)
    output: str = option("policy.safetensors", "file to write", metavar="FILE")


@dataclass(frozen=True)
class Source:
    """A network with its sites, and the images that problems are made of."""

    dataset: str  # whose name; all datasets weigh the same
    network: Network
    calibration: Calibration
    images: np.ndarray  # (n, c, h, w) uint8: the search split
    labels: np.ndarray  # (n,) int64

    def problem(self, generator: np.random.Generator) -> Problem:
        """Some of the images, under a tmax drawn anew."""
        share, offset = generator.uniform(*PERCENTILES), int(generator.integers(OFFSETS[0], OFFSETS[1] + 1))
        chosen = generator.choice(len(self.labels), min(IMAGES, len(self.labels)), replace=False)
        layers = tuple(layer.with_tmax(share, offset) for layer in self.calibration.layers)
        return Problem(
            self.network, Calibration(layers, share, offset), self.images[chosen], self.labels[chosen], REWARD
        )


@dataclass(frozen=True)
class Sample:
    """What was drawn for a problem, and how good it was."""

    observed: torch.Tensor  # (layers, 4)
    drawn: torch.Tensor  # (episodes, layers, 5) logits
    mean: torch.Tensor  # (layers, 5) that they were drawn around
    advantages: torch.Tensor  # (episodes,)


def sources(teachers: Sequence[str], data_dir: str | None) -> list[Source]:
    """Each teacher with each choice of sites that it has.

    Raises:
        InputError: one cannot be read, or its images cannot.
    """
    return [
        Source(each.dataset.name, each.problem.network, each.problem.calibration, *each.dataset.load("search"))
        for name in teachers for each in prepared(name, data_dir)
    ]  # fmt: skip


def prepared(name: str, data_dir: str | None, held_out_splits: Sequence[str] = ()) -> Iterator[job.Job]:
    """The search problems of a teacher: one for each choice of sites that makes a difference.

    Raises:
        InputError: it cannot be read, or its images cannot.
    """
    layers: list[tuple[str, ...]] = []
    for sites in CHOICES:
        found = job.prepare(_settings(name, data_dir, sites), held_out_splits)
        if found.problem.network.layers not in layers:
            layers.append(found.problem.network.layers)
            yield found


def _settings(name: str, data_dir: str | None, sites: str) -> config.Settings:
    """Those of a search of a teacher."""
    if not name.endswith(".json"):
        return config.parse([f"--model={name}", f"--sites={sites}"])
    dataset = store.read(Path(name)).about["dataset"].partition(":")[0]
    folder = [f"--data-dir={data_dir}"] if data_dir and dataset != "digits" else []
    return config.parse([f"--teacher={name}", f"--sites={sites}", f"--dataset={dataset}", *folder])


def train(found: Sequence[Source], iterations: int, seed: int) -> Iterator[tuple[Policy, float]]:
    """A policy that learns, and after each iteration the mean return by which its draws were better than quintile."""
    generator = np.random.default_rng(seed)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), RATE, fused=True)  # its square roots are exact on every CPU
    weights = _weights(found)
    for iteration in range(iterations):
        width = float(np.interp(iteration, (0, max(1, iterations - 1)), WIDTH))
        samples, gains = [], []
        for source in found:
            sample, gain = _sampled(policy, source.problem(generator), width, generator)
            samples.append(sample)
            gains.append(gain)
        optimizer.param_groups[0]["lr"] = RATE * (1 - iteration / iterations)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            (weights * torch.stack([_loss(policy, sample, width) for sample in samples])).sum().backward()
            optimizer.step()
        yield policy, float(np.mean(gains))


def trained(found: Sequence[Source], iterations: int, seed: int, every: int = 1) -> Policy:
    """The policy that `train` ends with; a line tells of every so many iterations."""
    for number, (policy, gain) in enumerate(train(found, iterations, seed), 1):
        last = policy
        if number % every == 0:
            print(f"iteration {number} of {iterations}: losses {-gain:+.4f} against quintile's", flush=True)
    return last


def _weights(found: Sequence[Source]) -> torch.Tensor:
    """Of each source, together 1: the same for all of a dataset, and all datasets weigh the same."""
    count = Counter(source.dataset for source in found)
    return torch.tensor([1 / len(count) / count[source.dataset] for source in found], dtype=torch.float64)


def _sampled(policy: Policy, problem: Problem, width: float, generator: np.random.Generator) -> tuple[Sample, float]:
    evaluator = Evaluator(problem)
    seen = proposal.observed(problem.calibration)
    with torch.no_grad():
        mean = policy(seen)
    noise = generator.normal(0, width, (EPISODES // 2, *mean.shape))
    drawn = mean.numpy() + np.concatenate([noise, -noise])
    returns = np.array([
        evaluator.evaluate(proposal.configuration(one, problem.calibration)).return_ for one in drawn
    ])  # fmt: skip
    quintile = evaluator.evaluate(problem.calibration.quintile).return_
    advantages = (returns - returns.mean()) / max(returns.std(), SMALLEST)
    sample = Sample(seen, torch.from_numpy(drawn), mean, torch.from_numpy(advantages))
    return sample, float(returns.mean()) - quintile


def _loss(policy: Policy, sample: Sample, width: float) -> torch.Tensor:
    """The clipped objective, each layer a step."""
    far, before = (
        ((sample.drawn - mean) / width).square().sum(-1) / 2 for mean in (policy(sample.observed), sample.mean)
    )
    ratio, advantages = (before - far).exp(), sample.advantages.unsqueeze(-1)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()


def _run(argv: list[str] | None) -> None:
    processes.prepare()
    torch.set_num_threads(1)
    settings = parse(Settings, "python -m search.pretrain", __doc__.splitlines()[0], argv)
    output = Path(settings.output)
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: its folder is not there: make it, or name another")
    found = sources(settings.teachers, settings.data_dir)
    print(f"{len(found)} problems of {len(settings.teachers)} teachers", flush=True)
    policy = trained(found, settings.iterations, settings.seed)
    Folder(output.parent).write(output.name, proposal.save(policy))
    print(f"policy in {output}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
