"""Real runs of the commands. A finished run is made once a session, however many tests look at it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

EPISODES, SEARCH_IMAGES = 10, 32
PPO_ALEXNET = f"--layers alexnet --algorithm ppo --episodes {EPISODES} --iteration-episodes 4 --num-env-runners "
# Only what hangs takes so long, on however busy a machine.
LONGEST_SECONDS = 900
PATIENCE_SECONDS = 60  # Ray's workers end by themselves, soon after their node
RESULTS = tempfile.TemporaryDirectory(prefix="tapsearch-tests-")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """What a command left."""

    status: int
    output: str
    errors: str
    folder: Path  # the run's
    processes: tuple[str, ...]  # command lines of those that outlived it
    temporary: tuple[str, ...]  # names of its temporary folders that outlived it

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """Its configurations, ordered by trial and episode."""
        frame = pd.read_parquet(self.folder / "episodes")
        return frame.sort_values(["trial", "episode"], ignore_index=True)

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())


class Command:
    """`python -m search.run ARGUMENTS` under way, in a session and with a folder for temporary files of its own."""

    def __init__(self, *arguments: str, results: Path | None = None, environment: Mapping[str, str] | None = None):
        results = results or Path(tempfile.mkdtemp(dir=RESULTS.name))
        self.folder = results / "r"
        self.temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short: Ray's sockets lie below it
        self._streams = [self.temporary / name for name in ("stdout", "stderr")]
        arguments = list(arguments)
        if "--results" not in arguments:
            arguments += ["--results", str(results)]
        if "--resume" not in arguments:
            arguments += ["--run-name", self.folder.name]
        with self._streams[0].open("w") as stdout, self._streams[1].open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "search.run", *arguments],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.temporary)} | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._streams[0].read_text()

    def wait_until(self, condition: Callable[[], object], seconds: float = LONGEST_SECONDS) -> None:
        """Waits while it runs, until something holds."""
        end = time.monotonic() + seconds
        while not condition():
            running = self.process.poll() is None
            assert running and time.monotonic() < end, self.output + self._streams[1].read_text()
            time.sleep(0.02)

    def written(self) -> int:
        """How many rows are written."""
        return sum(pq.read_metadata(part).num_rows for part in self.folder.glob("episodes/part-*.parquet"))

    def wait_for_rows(self, count: int = 1) -> None:
        """Waits until so many rows are written."""
        self.wait_until(lambda: self.written() >= count)

    def titled(self, title: str) -> list[int]:
        """Its processes whose command line begins so."""
        return [number for number, line in sorted(self._session().items()) if line.startswith(title)]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The driver sleeps meanwhile, so that the search cannot go on beyond its present step and end."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self, title: str) -> None:
        """Kills one of its processes, as a machine does that fails."""
        victims: list[int] = []
        while not victims:
            self.wait_until(lambda: self.titled(title))
            with self.held():  # it does not end while it is looked for
                victims = self.titled(title)
                for victim in victims[:1]:
                    os.kill(victim, signal.SIGKILL)

    def finish(self, seconds: float = LONGEST_SECONDS) -> Run:
        """Waits for its end, and removes whatever it has left, but for its results."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs, and has said: {self.output}{self._streams[1].read_text()}") from None
        finally:
            self.process.kill()
            self.process.wait()
            processes = self._outlived(PATIENCE_SECONDS)
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        texts = [stream.read_text() for stream in self._streams]
        left = tuple(path.name for path in self.temporary.glob("tapsearch-*"))
        shutil.rmtree(self.temporary)
        self.told = Run(status, *texts, self.folder, tuple(processes.values()), left)
        return self.told

    def _outlived(self, patience_s: float) -> dict[int, str]:
        """Processes that are still in this command's session, a few seconds after its end."""
        end = time.monotonic() + patience_s
        while (found := self._session()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _session(self) -> dict[int, str]:
        """Command lines of the processes of its session."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                if os.getsid(int(folder.name)) == self.process.pid:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@functools.cache
def node() -> str:
    """Address of a Ray node that searches share, one after another; it lives as long as the tests."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 2, "object_store_memory": 2**28, "include_dashboard": False}
    return Cluster(initialize_head=True, head_node_args=head).address


def run(arguments: str, *, alone: bool = False) -> Run:
    """The finished run of `python -m search.run ARGUMENTS` on few images.

    Args:
        alone: on a Ray of its own, as a person has it; else on the one that tests share.
    """
    return _run(arguments, alone)


@functools.cache
def _run(arguments: str, alone: bool) -> Run:
    place = [] if alone else ["--address", node()]
    return Command(*arguments.split(), *place, "--search-images", str(SEARCH_IMAGES)).finish()


def copy_checkout(target: Path) -> None:
    """Copies what a checkout holds, without what was made in it since."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
