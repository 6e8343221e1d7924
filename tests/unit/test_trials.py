"""What the command does while it waits for the sink."""

from types import SimpleNamespace

import pytest

from search import trials
from search.sink import Progress


def test_a_driver_that_waits_ends_when_another_has_taken_its_run_over(monkeypatch, capsys):
    progress = Progress(0, {}, 32, 0, None, 0.0, 1, "RuntimeError: not mine any more", True)
    handle = SimpleNamespace(progress=SimpleNamespace(remote=lambda: progress))
    monkeypatch.setattr(trials.ray, "wait", lambda answers, timeout: ([], answers))
    monkeypatch.setattr(trials.ray, "get", lambda said: said)
    with pytest.raises(KeyboardInterrupt):
        trials.patiently(handle, "an answer that never comes")
    assert capsys.readouterr().out == "another driver has taken this run over: this one ends\n"
