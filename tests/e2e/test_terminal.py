"""What a search shows: a live table on a terminal, which is as it was in the end; events; or its last line alone."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from tests import command
from tests.command import EPISODES, LONGEST_SECONDS, PPO_ALEXNET, ROOT, SEARCH_IMAGES

SEARCH = f"--model squeezenet_compact --algorithm random --seeds 0,1 --num-env-runners 1 --episodes {EPISODES}"
HIDDEN, SHOWN, ERASED = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


class Terminal:
    """`python -m search.run` with a terminal as its streams, of which all that comes is kept."""

    def __init__(self, results, arguments: str):
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self._ours)
        self.text = ""
        given = f"{arguments} --search-images {SEARCH_IMAGES} --address {command.node()}".split()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search.run", *given, "--results", str(results), "--run-name", "r"],
            cwd=ROOT, env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        content = b""
        try:
            while more := os.read(self._ours, 65536):
                content += more
                self.text = content.decode(errors="replace")
        except OSError:  # the last process that had it has ended
            pass

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + LONGEST_SECONDS
        while text not in self.text:
            assert self.process.poll() is None and time.monotonic() < end, self.text
            time.sleep(0.02)

    def finish(self) -> int:
        """Its status; the terminal is as it was, but for lines that stay."""
        try:
            status = self.process.wait(LONGEST_SECONDS)
        finally:
            self.process.kill()
        self._reader.join(command.PATIENCE_SECONDS)
        assert termios.tcgetattr(self._ours) == self.before
        os.close(self._ours)
        assert self.text.count(HIDDEN) == self.text.count(SHOWN) == 1
        table, after = self.text.split(SHOWN)
        assert "its drop, points" in table
        # Each line of the last table is erased: the head, two blanks, the columns' names, a rule, two searches.
        assert after.partition("configurations scored")[0].count(ERASED) == 7
        return status


def test_a_terminal_shows_each_search_and_keeps_the_results_alone(tmp_path):
    terminal = Terminal(tmp_path, SEARCH)
    assert terminal.finish() == 0, terminal.text
    drawn = terminal.text.partition(SHOWN)[0]
    assert f"search on {SEARCH_IMAGES} images: " in drawn and f"/{2 * EPISODES} episodes, " in drawn
    assert {"random-seed0", "random-seed1"} == set(re.findall(rf"(random-seed\d)\s+\d+/{EPISODES} ", drawn))
    assert f"results in {tmp_path}/r\r\n" in terminal.text.partition(SHOWN)[2]


def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path):
    terminal = Terminal(tmp_path, f"{SEARCH}0000")
    terminal.wait_for("its drop, points")
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.finish() == 130
    assert "interrupted\r\n" in terminal.text and "Traceback" not in terminal.text


def test_a_program_reads_events_from_start_to_end():
    run = command.run(f"{SEARCH} --json")
    assert (run.status, run.errors) == (0, "")
    events = [json.loads(line) for line in run.output.splitlines()]
    names = [event["event"] for event in events]
    assert names[:2] == ["started", "phase"] and names[-2:] == ["phase", "finished"]
    assert set(names) == {"started", "phase", "progress", "search_ended", "finished"}
    assert [event["phase"] for event in events if event["event"] == "phase"] == ["search", "validation"]
    assert sorted(event["search"] for event in events if event["event"] == "search_ended") == [
        "random-seed0", "random-seed1",
    ]  # fmt: skip
    started, finished, best = events[0], events[-1], run.json("best.json")
    assert (started["run"], started["seeds"], started["episodes"], started["images"]) == (
        "r", [0, 1], EPISODES, [SEARCH_IMAGES],
    )  # fmt: skip
    assert finished["chosen"] == best["selection"] and finished["folder"] == str(run.folder)
    assert finished["validation"] == best["metrics"]["validation"] and finished["test"] == best["metrics"]["test"]
    last = [event for event in events if event["event"] == "progress"][-1]
    of_seed = run.rows[run.rows["seed"] == 1]
    row = of_seed.loc[of_seed["return"].idxmax()]
    assert last["finished"] == last["total"] == 2 * EPISODES
    assert last["searches"][1] == {
        "search": "random-seed1", "total": EPISODES, "finished": EPISODES,
        "best_return": row["return"], "best_drop_points": row["drop_points"],
    }  # fmt: skip


def test_quiet_is_one_line():
    run = command.run("--model squeezenet_compact --algorithm quintile --num-env-runners 1 --quiet")
    assert (run.status, run.output, run.errors) == (0, f"report in {run.folder / 'report.html'}\n", "")


def test_a_line_in_a_file_is_as_before():
    """No escape of a terminal's, and no table."""
    run = command.run(f"{PPO_ALEXNET}2")
    assert run.status == 0 and "\x1b" not in run.output and "its drop, points" not in run.output


@pytest.mark.parametrize("how", ["--json", "--quiet"])
def test_bad_input_is_told_on_stderr(how):
    run = command.run(f"--model squeezenet_compact --calib-batches 4096 {how}")
    assert run.status == 2 and run.errors.startswith("error: --calib-batches 4096")
    told = [json.loads(line) for line in run.output.splitlines()]
    assert [event["event"] for event in told] == ["ended"] * (how == "--json")


def test_a_program_that_stops_reading_ends_the_search(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "search.run", *f"{SEARCH}0000 --json --address {command.node()}".split(),
         "--search-images", str(SEARCH_IMAGES), "--results", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert json.loads(running.stdout.readline())["event"] == "started"
    running.stdout.close()  # as `head -1` does
    assert running.wait(LONGEST_SECONDS) == 141 and running.stderr.read() == ""
