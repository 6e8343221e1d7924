"""Records in every env runner of a benchmark's job how long it is in the evaluator.

Ray runs `install` in each of its workers when told to by `environment`; the job itself is the one that users run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np

FOLDER = "TAPSEARCH_TRACE"
# How Ray tells a worker of the set-up hook in its runtime environment.
HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"


def environment(folder: Path) -> dict[str, str]:
    """Environment variables of a job that is to be traced."""
    return {FOLDER: str(folder), HOOK: f"{__name__}.install"}


def install() -> None:
    """From now on this process notes when it enters and leaves the evaluator."""
    from approx_env.scoring.evaluator import Evaluation, Evaluator

    Evaluator.begin = _traced(Evaluator.begin)
    Evaluation.advance = _traced(Evaluation.advance)
    Evaluation.complete = _traced(Evaluation.complete)


def read(folder: Path) -> list[np.ndarray]:
    """What each process noted: `(calls, 2) float64`, seconds since 1970 of entering and leaving."""
    return [np.frombuffer(path.read_bytes()).reshape(-1, 2) for path in sorted(folder.iterdir())]


def seconds_within(calls: np.ndarray, begin: float, end: float) -> float:
    """How much of the time from `begin` to `end` the calls took."""
    return float(np.diff(np.clip(calls, begin, end)).sum())


def _traced(function: Callable) -> Callable:
    path = Path(os.environ[FOLDER], str(os.getpid()))

    @wraps(function)
    def traced(*args, **kwargs):
        entered = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            with path.open("ab") as file:
                file.write(np.array([entered, time.time()]).tobytes())

    return traced
