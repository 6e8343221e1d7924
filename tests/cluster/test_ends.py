"""How a search ends that is told to end, or that loses a process of Ray's: one line, and nothing left behind."""

import os
import signal
import subprocess
import sys

import pytest

from search.results import lease
from tests.command import LONGEST_SECONDS, Command

ENDLESS = "--model squeezenet_compact --algorithm random --episodes 1000000 --search-images 16 --num-env-runners 1"


@pytest.fixture
def running():
    command = Command(*ENDLESS.split())
    yield command
    command.process.kill()


def check(running: Command, status: int, rows: bool = True) -> str:
    """It ends with this status and leaves nothing but its rows, if it has `rows`. Gives what it said on stderr."""
    ended = running.finish()
    assert ended.status == status, ended.output + ended.errors
    assert not any(word in ended.errors for word in ("Traceback", "***", "PC: @")), ended.errors
    assert not ended.temporary and not ended.processes
    assert not (ended.folder / lease.FILE).exists()
    assert (ended.folder / "episodes").exists() == rows
    assert not rows or len(ended.rows) > 0
    return ended.errors


def process(command: Command, file: str) -> list[int]:
    """Its processes that run a program whose path ends so."""
    return [number for number, line in command._session().items() if line.split(" ")[0].endswith(file)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal(running, number):
    """`test_alone` ends a search of PPO by Ctrl-C, and is not slow."""
    running.wait_for_rows()
    assert not list(running.temporary.rglob("events.out.tfevents*"))  # a signal in their writer kept it from ending
    running.process.send_signal(number)
    assert check(running, 128 + number).splitlines() == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_ray_starts(running, number):
    """The raylet and its agents are there, and nobody but Ray's client could end them yet."""
    running.wait_until(lambda: running.titled("ray::DashboardAgent"))
    running.process.send_signal(number)
    assert check(running, 128 + number, rows=False).splitlines() == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ray_ends(number):
    """SIGTERM then ends the command at once: Ray has given it back to the system."""
    command = Command(*ENDLESS.replace("1000000", "8").split())
    command.wait_until(lambda: "results in" in command.output and not process(command, "raylet/raylet"))
    command.process.send_signal(number)
    assert check(command, 128 + number).splitlines() == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), [("raylet/raylet", "raylet"), ("gcs_server", "GCS")])
def test_a_process_of_ray_that_dies(running, file, name):
    running.wait_for_rows()
    (number,) = process(running, file)
    os.kill(number, signal.SIGKILL)
    running.process.wait(LONGEST_SECONDS)
    kept = [path.name for path in running.temporary.glob("ray-logs-*/logs/*")]
    line = check(running, 1).rstrip("\n")
    assert line.startswith("error: ") and "\n" not in line, line
    assert name in line and "--resume" in line and str(running.temporary) in line
    assert any(log.startswith("raylet") for log in kept)


@pytest.mark.slow
def test_nobody_reads_what_it_says(tmp_path):
    """`python -m search.run ... | head -1`"""
    line = (
        f"{sys.executable} -m search.run {ENDLESS} --results {tmp_path} --run-name r | head -1; echo ${{PIPESTATUS[0]}}"
    )
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=LONGEST_SECONDS)
    assert ended.stdout.splitlines()[1:] == ["141"]
    assert ended.stderr == ""
