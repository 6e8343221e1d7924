"""Processes that score configurations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import ray
import torch

from approx_env import env
from approx_env.evaluator import Configuration, Evaluator, Problem

PATIENCE_SECONDS = 5.0


class Scorer:
    """Scores configurations in this process, on one thread."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(1)
        self._evaluator = Evaluator(problem)

    def ready(self) -> None:
        """Answers as soon as the process can score."""

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        return self._evaluator.teacher_accuracy

    def evaluate(self, configuration: Configuration) -> dict:
        """The score of a configuration, as the environment's last `info` has it."""
        return env.outcome(configuration, self._evaluator.evaluate(configuration))


@ray.remote(num_cpus=1, max_restarts=-1)
class Runner(Scorer):
    """A scorer in a process of its own; `shared` is from `share`."""

    def __init__(self, shared: bytes):
        super().__init__(fetch(shared))


def share(problem: Problem) -> bytes:
    """Puts a problem into Ray's object store, to stay there as long as this process lives.

    Its reference travels as bytes: an actor that is started again may not depend on an argument that Ray could release.
    """
    return ray.cloudpickle.dumps(ray.put(problem))


def fetch(shared: bytes) -> Problem:
    """The problem, whose arrays lie in the node's object store."""
    return ray.get(ray.cloudpickle.loads(shared))


class Runners:
    """`count` processes (at least one) that score configurations of a problem, which lies once in Ray's object store.

    They live until `close()`. Each asks Ray for a core and `gpus` GPUs. One that dies is started again, as soon as a
    node has room for it; the others do its work.
    """

    def __init__(self, problem: Problem, count: int, gpus: float = 0):
        shared, runner = share(problem), Runner.options(num_gpus=gpus)
        self._actors = [runner.remote(shared) for _ in range(max(1, count))]

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        answers = [_patient(actor.teacher_accuracy) for actor in self._actors]
        done, waiting = ray.wait(answers, num_returns=len(answers), timeout=PATIENCE_SECONDS)
        return ray.get((done or ray.wait(waiting)[0])[0])  # a process may wait for a host that is lost

    def evaluate(self, configurations: Sequence[Configuration]) -> Iterator[dict]:
        """Scores configurations, each by whichever runner is free; yields the scores in order."""
        waiting, done = deque(range(len(configurations))), {}
        idle: list[ray.actor.ActorHandle] = []
        # Calls under way: to whom, and for which configuration; None while a runner is being started.
        calls = {_patient(actor.ready): (actor, None) for actor in self._actors}
        for wanted in range(len(configurations)):
            while wanted not in done:
                while idle and waiting:
                    actor, position = idle.pop(), waiting.popleft()
                    calls[actor.evaluate.remote(configurations[position])] = actor, position
                (call,), _ = ray.wait(list(calls))
                actor, position = calls.pop(call)
                try:
                    result = ray.get(call)
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                    if position is None:
                        raise  # it cannot be started at all
                    waiting.appendleft(position)
                    calls[_patient(actor.ready)] = actor, None
                else:
                    idle.append(actor)
                    if position is not None:
                        done[position] = result
            yield done.pop(wanted)

    def close(self) -> None:
        """Ends the processes."""
        for actor in self._actors:
            ray.kill(actor)


def _patient(method) -> ray.ObjectRef:
    """Calls an actor's method, again if the actor dies before it answers."""
    return method.options(max_task_retries=-1).remote()
