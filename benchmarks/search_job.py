"""A whole PPO job as a user starts it, `python -m search.run` in a process of its own, and what is seen of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from approx_env import data
from approx_env.teachers import store
from benchmarks import workload

ROOT = Path(__file__).parents[1]
SEARCH_SHARE = 8  # an image folder's search split is this part of its training images
LONGEST_SECONDS = 600


def write_images(folder: Path, search_images: int) -> None:
    """Writes digits as an image folder whose search split has `search_images` images."""
    names = data.load("digits").classes
    for part, count in (("train", SEARCH_SHARE * search_images), ("test", len(workload.images(256)[0]))):
        for name in names:
            (folder / part / name).mkdir(parents=True)
        for k, (pixels, label) in enumerate(zip(*workload.images(count), strict=True)):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / part / names[label] / f"{k}.png", compress_level=1)


class SearchJob:
    """A running job over `images`, an image folder; a context manager that ends it, and every process it started.

    Args:
        images: an image folder, as `write_images` makes it.
        runners: env runners.
        episodes: configurations to score.
        search_images: images that each is scored on.
        environment: variables that its processes get besides.
    """

    def __init__(self, images: Path, runners: int, episodes: int, search_images: int, environment: Mapping[str, str]):
        self._temporary = tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp")  # short: Ray's sockets lie below it
        below = Path(self._temporary.name)
        self.folder = below / "run"
        options = {
            "layers": "squeezenet", "algorithm": "ppo", "dataset": "imagefolder", "data-dir": images,
            "teacher": store.path_of("squeezenet", "digits"), "episodes": episodes, "search-images": search_images,
            "num-env-runners": runners, "top": 1, "results": below, "run-name": self.folder.name,
        }  # fmt: skip
        self._output = (below / "output").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search.run", *(f"--{name}={value}" for name, value in options.items())],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": self._temporary.name, "PYTHONPATH": str(ROOT)} | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> SearchJob:
        return self

    def __exit__(self, *raised) -> None:
        for number, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait()
        self._output.close()
        self._temporary.cleanup()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def finish(self) -> None:
        """Waits for its end.

        Raises:
            RuntimeError: it failed, or takes longer than it may.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LONGEST_SECONDS)
        if self._process.poll() != 0:
            self._output.seek(0)
            raise RuntimeError(f"python -m search.run ended with {self._process.poll()}:\n{self._output.read()}")

    def processes(self) -> Iterator[tuple[int, str]]:
        """Ids and command lines of the processes of its session."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                if os.getsid(int(folder.name)) == self._process.pid:
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def memory_mb(process: int) -> float | None:
    """Proportional set size of a process, MB: its own pages, and its part of shared ones; None once it has ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def iteration_ends(rows: pd.DataFrame, an_iteration: int) -> np.ndarray:
    """When the last episode of each iteration ended, seconds since 1970; `rows` are a run's."""
    seconds = rows["time"].astype("int64") / 1000
    return seconds.groupby(rows["episode"] // an_iteration).max().to_numpy()
