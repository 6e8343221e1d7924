import pytest

from approx_env.errors import InputError, exit_status


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
    assert capsys.readouterr() == ("", "")
    assert exit_status(raising(InputError(["first", "second"]))) == 2
    assert capsys.readouterr() == ("", "error: first\nerror: second\n")
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_what_only_a_bug_can_raise_is_not_hidden():
    with pytest.raises(ValueError, match="^bug$"):
        exit_status(raising(ValueError("bug")))
