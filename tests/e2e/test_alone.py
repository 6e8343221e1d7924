"""A search with a Ray of its own: what others see of it while it works, and what Ctrl-C leaves."""

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from search.results import lease
from search.workers import processes
from tests.command import Command, Run


@pytest.fixture(scope="module")
def working():
    """A search that has hours to go, of a person who has had no Ray before."""
    home = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    arguments = "--model squeezenet_compact --algorithm ppo --episodes 100000 --iteration-episodes 8 --search-images 16"
    own = {"HOME": str(home), "RAY_AUTH_MODE": "token"}
    command = Command(*arguments.split(), "--num-env-runners", "1", environment=own)
    command.home = home
    try:
        command.wait_for_rows()
        yield command
    finally:
        if command.temporary.exists():  # nothing has ended it
            command.process.kill()
            command.finish()
        shutil.rmtree(home)


def listening(table: Path) -> dict[str, str]:
    """Local addresses of a table of the kernel's that somebody listens at, in its own notation, by inode."""
    lines = [line.split() for line in table.read_text().splitlines()[1:]]
    return {line[9]: line[1].split(":")[0] for line in lines if line[3] == "0A"}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_it_listens_on_loopback_alone(working):
    addresses = listening(Path("/proc/net/tcp")) | listening(Path("/proc/net/tcp6"))
    found = {}
    for number, title in working._session().items():
        with contextlib.suppress(OSError):  # it has just ended
            for name in os.listdir(f"/proc/{number}/fd"):
                inode = os.readlink(f"/proc/{number}/fd/{name}").removeprefix("socket:[").removesuffix("]")
                if inode in addresses:
                    found[title.split(" ")[0].rpartition("/")[2], inode] = addresses[inode]
    assert any(title.startswith("ray::") for title, _ in found) and "gcs_server" in {title for title, _ in found}
    assert set(found.values()) <= LOOPBACK, found


def test_it_shows_nobody_its_files(working):
    (top,) = working.temporary.glob("tapsearch-*")  # what lies below it, Ray opens to all, but nobody comes so far
    token = working.home / ".ray" / "auth_token"
    files = [token.parent, token, top, working.folder, *working.folder.rglob("*")]
    open_to_others = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # one that was being written
            open_to_others[str(path)] = path.stat().st_mode & 0o077
    assert not any(open_to_others.values()), open_to_others
    assert {path.name for path in files} > {"run.json", "episodes"}


def test_its_workers_are_as_nice_as_it(working):
    found = {}
    for number in working.titled("ray::"):
        with contextlib.suppress(ProcessLookupError):
            found[number] = os.getpriority(os.PRIO_PROCESS, number)
    assert len(found) >= 3
    assert set(found.values()) == {os.getpriority(os.PRIO_PROCESS, working.process.pid)}


@pytest.mark.parametrize("title", ["ray::TapPPO", "ray::SearchEnvRunner"])
def test_whoever_runs_the_policy_rounds_as_on_every_cpu(working, title):
    (number, *_) = working.titled(title)
    told = dict(line.split("=", 1) for line in Path(f"/proc/{number}/environ").read_text().split("\0") if line)
    assert processes.SAME_BITS.items() <= told.items()


# -- from here on it has ended


@pytest.fixture(scope="module")
def interrupted(working) -> Run:
    """The search after Ctrl-C, which a terminal sends to every process of the foreground group."""
    os.killpg(working.process.pid, signal.SIGINT)
    return working.finish()


def test_ctrl_c_ends_it_with_hours_to_go_and_is_said(interrupted):
    """Within ten seconds, on a machine that has nothing else to do."""
    assert interrupted.status == 130
    assert interrupted.errors == "interrupted\n"
    assert "Traceback" not in interrupted.output


def test_ctrl_c_keeps_every_finished_row_and_says_how_many(interrupted):
    told = re.search(r"(\d+) configurations scored", interrupted.output)
    assert 0 < int(told[1]) == len(interrupted.rows) < 100_000
    assert interrupted.rows["episode_id"].is_unique
    distinct = interrupted.rows.filter(regex="_(t1|v1|t2|v2)$").drop_duplicates()
    assert len(pd.read_parquet(interrupted.folder / "top.parquet")) == min(30, len(distinct))
    assert not (interrupted.folder / "best.json").exists()


def test_ctrl_c_leaves_no_process_no_lease_and_no_temporary_file(interrupted):
    assert interrupted.processes == () and interrupted.temporary == ()
    assert not (interrupted.folder / lease.FILE).exists()
    assert list(interrupted.folder.rglob("*.tmp")) == []
