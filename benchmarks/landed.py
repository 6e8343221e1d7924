"""The engine as it was before its codes were exact, from the project's own history, to measure what exactness costs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "6d5788cdbb2205ff7c79b9a8f17dfe03e8027b0a"
ROOT = Path(__file__).parents[1]
SERVE = """
import sys
import torch
torch.set_num_threads(1)
from approx_env.evaluator import Evaluator  # where that commit has it
from benchmarks import bench_evaluator, workload
run = bench_evaluator.episodes(Evaluator(workload.problem(sys.argv[1], int(sys.argv[2]))))
print("ready", flush=True)
for _ in sys.stdin:
    run()
    print("done", flush=True)
"""


def available() -> bool:
    """Whether this is a checkout that holds the commit."""
    return _git("cat-file", "-e", COMMIT).returncode == 0


@contextmanager
def served(model: str, images: int) -> Iterator[Callable[[], object]]:
    """Gives a function that has the earlier engine score another configuration, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(
            fileobj=io.BytesIO(_git("archive", COMMIT, "approx_env", "search", "benchmarks").stdout)
        ) as tar:
            tar.extractall(folder, filter="data")
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, model, str(images)], cwd=folder, text=True,
            env=os.environ | {"PYTHONPATH": folder}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

        def answer() -> None:
            if not process.stdout.readline():
                raise RuntimeError(f"the engine of commit {COMMIT[:7]} ended: see what it printed")

        def score() -> None:
            process.stdin.write("\n")
            process.stdin.flush()
            answer()

        try:
            answer()
            yield score
        finally:
            process.stdin.close()
            process.wait()


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
