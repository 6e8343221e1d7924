"""What is shown of a stage: lines, a table, events; and how its watch ends."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from search import telling
from search.results.ledger import Progress, Searched
from search.stages import live

STAGE = live.Stage("search", 32, {"hill-seed0": 4, "hill-seed1": 4})
PROGRESS = Progress(3, {}, 32, 3, 0.25, 0.5, 0, None, False, 0, {"hill-seed0": Searched(3, 0.25, 1.5)})


def watch(monkeypatch, *told: Progress | Exception) -> live.Watch:
    """A watch of a sink that answers so, one after another."""
    answers = iter(told)

    def get(handle, timeout):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(live.ray, "get", get)
    made = live.Watch(SimpleNamespace(progress=SimpleNamespace(remote=lambda: None)), STAGE)
    waits = iter([False] * len(told) + [True])
    made._ended = SimpleNamespace(wait=lambda seconds: next(waits), set=lambda: None)
    return made


@pytest.mark.parametrize(("best", "said"), [(0.25, "0.2500"), (None, "none yet")])
def test_a_line_tells_what_is_done_even_if_nothing_keeps_the_budget(monkeypatch, capsys, best, said):
    progress = replace(PROGRESS, best_return=best)
    watch(monkeypatch, progress, progress, replace(progress, finished=5, rate=0.0)).run()
    assert capsys.readouterr().out.splitlines() == [
        f"3/8 episodes, 0.50 episodes/s, 10 s left, best return so far {said} on 32 images",
        f"5/8 episodes, 0.00 episodes/s, time left unknown, best return so far {said} on 32 images",
    ]


def test_nothing_is_told_of_another_rung_nor_before_something_is_finished(monkeypatch, capsys):
    watch(monkeypatch, replace(PROGRESS, images=16), replace(PROGRESS, finished=0)).run()
    assert capsys.readouterr().out == ""


def test_trouble_is_told_once_and_its_end(monkeypatch, capsys):
    full = replace(PROGRESS, finished=0, trouble="OSError: full", waiting=2)
    watch(monkeypatch, full, full, live.ray.exceptions.RayActorError(), replace(full, trouble=None)).run()
    assert capsys.readouterr().out.splitlines() == [
        "results cannot be written or read (OSError: full): 2 finished configurations wait, and the search waits for "
        "them; trying again",
        "results are written again",
    ]


def test_the_command_ends_when_another_driver_has_the_run(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(live._thread, "interrupt_main", lambda: ended.append(True))
    watch(monkeypatch, replace(PROGRESS, lost=True), PROGRESS).run()
    assert ended == [True]
    assert capsys.readouterr().out == "another driver has taken this run over: this one ends\n"


def rendered(progress: Progress, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(live.drawn(STAGE, progress))
    return [line.strip() for line in console.file.getvalue().splitlines() if line.strip(" ─")]


def test_the_table_has_a_line_for_each_search():
    assert rendered(PROGRESS) == [
        "search on 32 images: 3/8 episodes, 0.50 episodes/s, 0:00:10 left",
        "search       episodes   best return   its drop, points",
        "hill-seed0        3/4        0.2500               1.50",
        "hill-seed1        0/4             -                  -",
    ]


def test_the_table_of_a_stage_that_has_just_begun():
    head, *_ = rendered(replace(PROGRESS, finished=0, rate=0.0, searches={}))
    assert head == "search on 32 images: 0/8 episodes, 0.00 episodes/s, time left unknown"


def test_the_table_fits_a_narrow_terminal():
    assert all(len(line) <= 40 for line in rendered(PROGRESS, width=40))


@pytest.mark.parametrize(
    ("terminal", "kind", "display"),
    [(True, "xterm", live.LiveTable), (True, "dumb", live.Lines), (False, "xterm", live.Lines)],
)
def test_a_table_is_for_terminals_that_can_draw_one(monkeypatch, terminal, kind, display):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal, write=None, flush=None))
    assert type(live.display(STAGE)) is display


class Terminal(io.StringIO):
    """What a terminal gets."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_the_terminal_is_as_it_was_in_the_end(monkeypatch, error):
    """The cursor is back and the table gone, though Ctrl-C comes again while the thread is waited for."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    made = watch(monkeypatch, PROGRESS)

    def join():
        live.threading.Thread.join(made)
        if error:
            raise error

    made.join = join
    try:
        with made:
            print("a line above it")
    except KeyboardInterrupt as raised:
        assert raised is error
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    text = terminal.getvalue()
    assert text.count(hidden) == text.count(shown) == 1 and text.rindex(shown) > text.rindex("episodes")
    assert "a line above it" in text and live.sys.stdout is terminal
    assert "\x1b[2K" in text[text.rindex("hill-seed1") :]  # the table's lines are erased


def test_the_cursor_is_back_though_ctrl_c_comes_at_the_start(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    made = watch(monkeypatch)
    made.start = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), made:
        raise AssertionError
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().index("\x1b[?25l")


def test_a_program_gets_what_has_changed_and_the_end(monkeypatch, capsys):
    last = replace(PROGRESS, finished=4, searches={"hill-seed0": Searched(4, 0.25, 1.5)})
    with telling.begun(as_json=True):
        made = watch(monkeypatch, PROGRESS, PROGRESS, last)
        answers = iter([False, False, True])
        made._ended.wait = lambda seconds: next(answers)
        with made:
            pass
    phase, first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert {name: phase[name] for name in ("event", "phase", "images", "total")} == {
        "event": "phase", "phase": "search", "images": 32, "total": 8,
    }  # fmt: skip
    del first["time"]
    assert first == {
        "event": "progress", "phase": "search", "images": 32, "finished": 3, "total": 8, "rate": 0.5,
        "seconds_left": 10.0, "best_return": 0.25, "searches": [
            {"search": "hill-seed0", "total": 4, "finished": 3, "best_return": 0.25, "best_drop_points": 1.5},
            {"search": "hill-seed1", "total": 4, "finished": 0, "best_return": None, "best_drop_points": None},
        ],
    }  # fmt: skip
    assert second["searches"][0]["finished"] == 4


def test_who_wants_the_last_line_alone_gets_nothing_meanwhile(monkeypatch, capsys):
    with telling.begun(quiet=True):
        watch(monkeypatch, PROGRESS, replace(PROGRESS, trouble="OSError: full")).run()
        out, err = capsys.readouterr()
    assert out == "" and err.startswith("results cannot be written or read (OSError: full)")
