"""Who reads stdout: what each of them gets, also when a command fails."""

import contextlib
import datetime
import json
import sys

import pytest
from rich.console import Console

from search import telling


def test_people_read_all_that_is_printed(capsys):
    with telling.begun():
        assert telling.to_people() and not telling.to_programs()
        print("a line")
        telling.event("started", run="r")
        telling.trouble("the disk is full")
    assert capsys.readouterr() == ("a line\nthe disk is full\n", "")


def test_quiet_is_the_last_line_and_what_goes_wrong(capsys):
    with telling.begun(quiet=True):
        assert not telling.to_people() and not telling.to_programs()
        print("a line", end="")
        print(" and its end\nresults in r\n")
        Console().print("")
        telling.event("started", run="r")
        telling.trouble("the disk is full")
        assert capsys.readouterr() == ("", "the disk is full\n")
    assert capsys.readouterr() == ("results in r\n", "")


def test_quiet_of_nothing_is_nothing(capsys):
    with telling.begun(quiet=True):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_quiet_command_that_is_interrupted_tells_its_last_line(capsys):
    with pytest.raises(KeyboardInterrupt), telling.begun(quiet=True):
        print("7 configurations scored")
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "7 configurations scored\n"


def test_a_program_reads_events_alone(capsys):
    with telling.begun(as_json=True):
        assert telling.to_programs() and not telling.to_people()
        print("a line")
        telling.event("started", run="r", seeds=(0, 1))
        telling.trouble("the disk\nis full")
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    times = [datetime.datetime.fromisoformat(each.pop("time")) for each in (first, second)]
    assert times[0] <= times[1] and times[0].utcoffset() == datetime.timedelta(0)
    assert first == {"event": "started", "run": "r", "seeds": [0, 1]}
    assert second == {"event": "trouble", "text": "the disk\nis full"} and err == ""


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("no such file"), "no such file"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_program_is_told_why_a_command_ended(capsys, error, reason):
    with pytest.raises(type(error)), telling.begun(as_json=True):
        raise error
    ended = json.loads(capsys.readouterr().out)
    assert (ended["event"], ended["reason"]) == ("ended", reason)


@pytest.mark.parametrize("how", [{"quiet": True}, {"as_json": True}])
def test_whether_anybody_reads_is_seen_through_it(how, tmp_path):
    """`approx_env.errors` asks the file behind stdout."""
    with (tmp_path / "out").open("w") as file, contextlib.redirect_stdout(file), telling.begun(**how):
        assert sys.stdout is not file and sys.stdout.fileno() == file.fileno()
