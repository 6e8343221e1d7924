"""Times things side by side, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from approx_env.engines import memory


def use_one_thread() -> None:
    """Sets this process up for timing: one thread, freed memory kept, no gradients."""
    memory.keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def side_by_side(runs: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, np.ndarray]:
    """Runs each of `runs` once a round; gives its seconds in every round, `(repetitions,)`.

    A first round does not count. Who begins changes from round to round, so that none always follows the same one.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repetitions + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begin)
    return {name: np.array(values[1:]) for name, values in seconds.items()}
