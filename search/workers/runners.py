"""Processes that score configurations."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from approx_env.errors import InputError
from approx_env.scoring.configuration import Configuration, layer_forwards
from search.workers.losses import Losses, raised
from search.workers.processes import ONE_CORE, Needs
from search.workers.session import fetch, share

if TYPE_CHECKING:
    from approx_env.scoring.evaluator import Problem, Tables  # brings torch, which only a scorer needs


LOOK_AHEAD = 8  # so far behind the first that waits, for each runner, may one be chosen: rows come in order


class Scorer:
    """Scores configurations in this process, on so many threads."""

    def __init__(self, problem: Problem, threads: int = 1):
        import torch

        from approx_env import env
        from approx_env.scoring.evaluator import Evaluator

        torch.set_num_threads(1)
        self._env, self._evaluator = env, Evaluator(problem, threads=threads)

    def ready(self) -> None:
        """Answers as soon as the process can score."""

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        return self._evaluator.teacher_accuracy

    def evaluate(self, configuration: Configuration) -> dict:
        """The score of a configuration, as the environment's last `info` has it."""
        return self._env.outcome(configuration, self._evaluator.evaluate(configuration))

    def score(self, tables: Tables) -> dict:
        """The score of a baseline, as `evaluate` has it."""
        return self._env.measured(self._evaluator.evaluate(tables))


@ray.remote
class Runner(Scorer):
    """A scorer in a process of its own; `shared` is from `share`."""

    def __init__(self, shared: bytes, threads: int):
        super().__init__(fetch(shared), threads)


class Runners:
    """`count` processes that score configurations of a problem, which lies once in Ray's object store.

    A free one takes what begins most like what it scored last: there its evaluator starts where the two part.

    They live until `close()`. One that dies is replaced, as soon as a node has room for it; the others do its work.
    With a count of 0 this process scores.

    Args:
        problem: what to score on; or what `share` gave for it, if there are processes.
        needs: what each asks of Ray.
    """

    def __init__(self, problem: Problem | bytes, count: int, needs: Needs = ONE_CORE):
        self._here = None if count else Scorer(problem, needs.cores)
        self._shared = problem if isinstance(problem, bytes) or not count else share(problem)
        self._runner, self._threads = Runner.options(num_cpus=needs.cores, num_gpus=needs.gpus), needs.cores
        self._actors = [self._started() for _ in range(count)]
        self._losses = Losses(count)
        self._last: dict[int, Configuration] = {}  # that each scored, by its place in the list

    def teacher_accuracy(self) -> float:
        """Share of the problem's images in [0, 1] that the teacher gets right."""
        return next(self._work("teacher_accuracy", [()]))

    def evaluate(self, configurations: Sequence[Configuration]) -> Iterator[dict]:
        """Scores configurations; yields the scores in order.

        Raises:
            InputError: a runner raised it.
            ScoringFailed: a runner raised anything else, or runners die again and again.
        """
        return self._work("evaluate", [(configuration,) for configuration in configurations])

    def score(self, baselines: Sequence[Tables]) -> Iterator[dict]:
        """Scores baselines, as `evaluate` scores configurations."""
        return self._work("score", [(tables,) for tables in baselines])

    def _work(self, method: str, arguments: Sequence[tuple]) -> Iterator[Any]:
        """Calls a method of whichever runner is free with each of the arguments; yields the results in order."""
        if self._here:
            for each in arguments:
                try:
                    result = getattr(self._here, method)(*each)
                except InputError:
                    raise
                except Exception as error:
                    raise raised(error) from error
                yield result
            return
        waiting, done = deque(range(len(arguments))), {}
        idle: list[int] = []  # places in the list of actors
        # Calls under way: by which runner, and for which position; None while a runner is being started.
        calls = {actor.ready.remote(): (place, None) for place, actor in enumerate(self._actors)}
        for wanted in range(len(arguments)):
            while wanted not in done:
                while idle and waiting:
                    place = idle.pop()
                    position = self._likest(place, waiting, arguments) if method == "evaluate" else waiting[0]
                    waiting.remove(position)
                    calls[getattr(self._actors[place], method).remote(*arguments[position])] = place, position
                (call,), _ = ray.wait(list(calls))
                place, position = calls.pop(call)
                try:
                    result = ray.get(call)
                except (ray.exceptions.RayError, InputError) as error:
                    self._replace(place, error)
                    calls[self._actors[place].ready.remote()] = place, None
                    if position is not None:
                        waiting.appendleft(position)
                    continue
                idle.append(place)
                if position is not None:
                    self._losses.finished()
                    done[position] = result
            yield done.pop(wanted)

    def _likest(self, place: int, waiting: Collection[int], arguments: Sequence[tuple[Configuration]]) -> int:
        """The position of the configuration that a runner has the least to do for, not far behind the first."""
        before, end = self._last.get(place, ()), min(waiting) + LOOK_AHEAD * len(self._actors)
        near = (one for one in waiting if one < end)
        position = min(near, key=lambda one: layer_forwards(arguments[one][0], before))
        self._last[place] = arguments[position][0]
        return position

    def _replace(self, place: int, error: Exception) -> None:
        """Puts a new runner into the place of one that failed with `error`, unless that would not help."""
        if reason := raised(error):
            raise reason from error
        self._losses.lost(error)
        self._last.pop(place, None)
        ray.kill(self._actors[place])  # perhaps it is only out of reach
        self._actors[place] = self._started()

    def _started(self) -> ray.actor.ActorHandle:
        return self._runner.remote(self._shared, self._threads)

    def close(self) -> None:
        """Ends the processes."""
        for actor in self._actors:
            ray.kill(actor)
