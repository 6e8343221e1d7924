"""Processes that score configurations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray
import torch

from approx_env import env
from approx_env.evaluator import Configuration, Evaluator, Problem


class Scorer:
    """Scores configurations in this process, on one thread."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(1)
        self._evaluator = Evaluator(problem)

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        return self._evaluator.teacher_accuracy

    def evaluate(self, configuration: Configuration) -> dict:
        """The score of a configuration, as the environment's last `info` has it."""
        return env.outcome(configuration, self._evaluator.evaluate(configuration))


Runner = ray.remote(num_cpus=1)(Scorer)


class Runners:
    """`count` processes (at least one) that score configurations of a problem, which lies once in Ray's object store.

    They live until `close()`. Each asks Ray for a core and `gpus` GPUs.
    """

    def __init__(self, problem: Problem, count: int, gpus: float = 0):
        shared, runner = ray.put(problem), Runner.options(num_gpus=gpus)
        self._actors = [runner.remote(shared) for _ in range(max(1, count))]

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        return ray.get(self._actors[0].teacher_accuracy.remote())

    def evaluate(self, configurations: Sequence[Configuration]) -> Iterator[dict]:
        """Scores configurations, the runners taking turns; yields the scores in order, each as soon as it is there."""
        actors = self._actors
        scores = [actors[k % len(actors)].evaluate.remote(c) for k, c in enumerate(configurations)]
        yield from map(ray.get, scores)

    def close(self) -> None:
        """Ends the processes."""
        for actor in self._actors:
            ray.kill(actor)
