"""What is left of Ray's logs."""

import pytest

from approx_env.errors import InputError
from search.results.folder import Folder
from search.workers import logs


@pytest.fixture
def session(tmp_path):
    """A session's temporary folder with logs in it."""
    written = tmp_path / "temporary/session_1/logs"
    written.mkdir(parents=True)
    (written / "worker-a-1.err").write_text("Traceback: here")
    (written / "worker-a-1.out").write_text("")
    (written / "raylet.log").write_text("chatter")
    (tmp_path / "temporary/session_latest").symlink_to(tmp_path / "temporary/session_1")
    return tmp_path / "temporary"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "r").mkdir()
    return tmp_path / "r"


def test_a_run_that_fails_keeps_what_its_processes_wrote_and_says_where(session, run, capsys):
    with pytest.raises(ZeroDivisionError), logs.kept(session, Folder(run)):
        1 / 0  # noqa: B018
    assert [path.name for path in (run / "logs").iterdir()] == ["worker-a-1.err"]
    assert (run / "logs/worker-a-1.err").read_text() == "Traceback: here"
    assert capsys.readouterr().err == f"Ray's logs are kept in {run}/logs\n"


def test_a_second_failure_adds_its_own(session, run):
    for number in (1, 2):
        (session / f"session_1/logs/worker-b-{number}.err").write_text("x" * (logs.LONGEST_BYTES + number))
        with pytest.raises(ZeroDivisionError), logs.kept(session, Folder(run)):
            1 / 0  # noqa: B018
    assert {path.name for path in (run / "logs").iterdir()} == {"worker-a-1.err", "worker-b-1.err", "worker-b-2.err"}
    assert (run / "logs/worker-b-2.err").stat().st_size == logs.LONGEST_BYTES


@pytest.mark.parametrize("error", [None, InputError("no such teacher"), KeyboardInterrupt()])
def test_a_run_that_ends_or_is_stopped_or_got_bad_input_keeps_none(session, run, error, capsys):
    try:
        with logs.kept(session, Folder(run)):
            if error:
                raise error
    except (InputError, KeyboardInterrupt) as raised:
        assert raised is error
    assert list(run.iterdir()) == [] and capsys.readouterr().err == ""


def test_a_cluster_has_its_logs_on_its_nodes(tmp_path, run, capsys):
    with pytest.raises(ZeroDivisionError), logs.kept(tmp_path / "empty", Folder(run)):
        1 / 0  # noqa: B018
    assert "/tmp/ray/session_latest/logs" in capsys.readouterr().err


def test_the_failure_is_told_even_where_logs_cannot_be_kept(session, run, capsys):
    (run / "logs").write_text("a file")
    with pytest.raises(ZeroDivisionError), logs.kept(session, Folder(run)):
        1 / 0  # noqa: B018
    assert "could not be kept" in capsys.readouterr().err
