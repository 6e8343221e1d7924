import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from approx_env.errors import ENDING, Failure, InputError, exit_status, postponed, run_module

ROOT = Path(__file__).parents[2]


def test_one_problem():
    error = InputError("--lr must be positive, got -1")
    assert error.problems == ["--lr must be positive, got -1"]
    assert str(error) == "--lr must be positive, got -1"


def test_several_problems_are_kept_apart():
    error = InputError(("first", "second"))
    assert error.problems == ["first", "second"]
    assert str(error) == "first; second"
    assert isinstance(error, ValueError)


def raising(error: BaseException):
    def command():
        raise error

    return command


def test_exit_status_of_a_command(capsys):
    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 5) == 5
    assert capsys.readouterr() == ("", "")
    assert exit_status(raising(InputError(["first", "second"]))) == 2
    assert capsys.readouterr() == ("", "error: first\nerror: second\n")
    assert exit_status(raising(Failure("Ray has died: start again"))) == 1
    assert capsys.readouterr() == ("", "error: Ray has died: start again\n")
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("error", [ValueError("bug"), BrokenPipeError("of another pipe")])
def test_what_only_a_bug_can_raise_is_not_hidden(error):
    with pytest.raises(type(error), match=str(error)):
        exit_status(raising(error))


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_as_ctrl_c_does(number, capsys):
    before = signal.getsignal(number)
    cleaned = []

    def command():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    assert exit_status(command) == 128 + number
    assert cleaned and capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) is before


def test_a_signal_that_is_repeated_does_not_stop_the_cleaning_up(capsys):
    cleaned = []

    def command():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    assert exit_status(command) == 143 and cleaned


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_dropped_comes_again(number, capsys):
    """As it is when it comes while an object of Ray's is destroyed."""

    class Object:
        def __del__(self):
            os.kill(os.getpid(), number)

    def command():
        Object()
        threading.Event().wait(60)

    assert exit_status(command) == 128 + number
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_is_postponed_comes_after_the_block(number, capsys):
    done = []

    def command():
        with postponed():
            os.kill(os.getpid(), number)
            done.append("block")
        done.append("rest")

    assert exit_status(command) == 128 + number
    assert done == ["block"] and capsys.readouterr().err == "interrupted\n"


def test_a_second_ctrl_c_is_not_postponed(capsys):
    done = []

    def command():
        with postponed():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("first")
            os.kill(os.getpid(), signal.SIGINT)
            done.append("second")

    assert exit_status(command) == 130
    assert done == ["first"] and capsys.readouterr().err == "interrupted\n"


def test_nothing_is_postponed_in_another_thread():
    before, found = signal.getsignal(signal.SIGINT), []

    def block():
        with postponed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert found == [before]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert exit_status(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_runs_in_another_thread_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(exit_status(lambda: 3)))
    thread.start()
    thread.join()
    assert found == [3]


# -- processes. Each program ends in a command.

HEAD = "import sys, threading, time; from approx_env.errors import exit_status\n"
PRINTS = "def command():\n for k in range(100_000): print(k)\n"
PRINTS_IN_A_THREAD = (
    "def write():\n for k in range(100_000): print(k, flush=True)\n"
    "def command():\n threading.Thread(target=write).start(); time.sleep(600)\n"
)
HELP = "import argparse\ndef command(): argparse.ArgumentParser(epilog='x' * 300_000).parse_args(['--help'])\n"
CALL = "sys.exit(exit_status(command))"


def shell(line: str, program: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a line of bash in which `$PROGRAM` is the Python program."""
    environment = os.environ | {"PROGRAM": HEAD + program + CALL, "PY": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line], env=environment | variables, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", [PRINTS, PRINTS_IN_A_THREAD, HELP])
def test_a_reader_that_goes_ends_a_command_quietly(program, unbuffered):
    done = shell('"$PY" -c "$PROGRAM" | head -1; echo ${PIPESTATUS[0]}', program, PYTHONUNBUFFERED=unbuffered)
    assert (done.stdout.splitlines()[1:], done.stderr) == (["141"], "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_good_as_none(closed, tmp_path):
    """Nor does what is printed get into a file that the command opens."""
    program = f"def command():\n with open(r'{tmp_path}/f', 'w') as file: print('lost'); file.write('kept')\n"
    assert shell(f'"$PY" -c "$PROGRAM" {closed}', program).returncode == 0
    assert (tmp_path / "f").read_text() == "kept"


COMMANDS = ["search.run", "search.report", "search.architecture", "search.sensitivity", "search.finetune",
            "cluster.check", "approx_env.training"]  # fmt: skip


def test_a_signal_that_a_library_catches_while_it_is_loaded_still_ends_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "catching.py").write_text(
        "import os, signal\ntry:\n os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n pass\n"
        "def main():\n print('goes on')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_module("catching") == 143
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("module", COMMANDS)
def test_ctrl_c_is_heard_while_a_command_is_loaded(module):
    """Python tells each module that is loaded; the signal comes in the middle of them."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", module, "--help"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:  # pandas, torch or Ray are loaded by all of them, and begin with this or go on with it
        if line.split("|")[-1].strip() in ("dateutil", "pytz", "torch._utils", "ray._version", "pandas._libs.lib"):
            break
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(60) == 130, said[-2000:]
    assert "Traceback" not in said and "interrupted" in said
