"""The table of runs, and how its command ends. Damaged folders are in test_inspection."""

import subprocess
import sys
from pathlib import Path

import pytest

from search.results import report

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "results" / "reference" / "squeezenet-quintile")


def command(*arguments: str, **pipes) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "search.report", *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT, **pipes
    )


def test_a_run_is_a_row(capsys):
    assert report.main([RUN, RUN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| network | teacher on test, float / INT8 | search | episodes x seeds |")
    assert lines[1] == "|---" * 10 + "|"
    assert lines[2] == lines[3] and lines[2].startswith("| squeezenet | 89.2% / 89.3% | quintile | 1 x 1 |")
    assert len(lines) == 4


def test_energy_is_told_with_its_table_where_the_run_has_one():
    assert report._energy({"relative_energy": 0.12345, "table": "Jouppi 7 nm"}) == "0.123 (Jouppi 7 nm)"
    assert report._energy(None) == "-"


def test_the_column_of_energies_is_there_if_one_of_the_runs_has_it(monkeypatch):
    cells = {"old": (*"123456789", report.NO_ENERGY), "new": (*"123456789", "0.123 (Jouppi 7 nm)")}
    monkeypatch.setattr(report, "row", cells.get)
    old, new, both = (report.table(runs).splitlines() for runs in (["old"], ["new"], ["old", "new"]))
    assert old[2] == "| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 |" and "energy" not in old[0]
    assert new[2] == both[3] == "| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 0.123 (Jouppi 7 nm) |"
    assert both[2].endswith("| 9 | - |") and both[0].endswith("| energy of all multiplications |")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys, flag):
    assert report.main([flag]) == report.main([RUN, flag]) == 0
    assert "usage: python -m search.report [--beside | --html FILE | --live] RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name the folders of one or more runs"),
        (["--all"], "--all is no option of search.report"),
        ([RUN, "-x"], "-x is no option of search.report"),
        (["s3://"], "'s3://' is no place for results"),
        (["gs://bucket/run"], "gs:// is not supported"),
        ([""], "'' is no place for results"),
        (["a\0b"], "is no place for results"),
        (["caf\udce9"], "is no place for results"),
        (["/none"], "/none holds no finished run"),
        ([RUN, "/none"], "/none holds no finished run"),
    ],
)
def test_what_cannot_be_reported(capsys, arguments, told):
    assert report.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and told in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_pipe_that_nobody_reads():
    running = command(*[RUN] * 3, stdout=subprocess.PIPE)
    running.stdout.close()  # as `head` does when it has enough
    assert running.wait(60) == 141 and running.stderr.read() == ""


def test_a_stdout_that_takes_nothing():
    with open("/dev/full", "w") as full:
        running = command(RUN, stdout=full)
        assert running.wait(60) == 2
    assert running.stderr.read().startswith("error: stdout cannot be written")
