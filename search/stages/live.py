"""What is shown of a stage of a run while it works: a table on a terminal, else lines, or events for a program."""

from __future__ import annotations

import _thread
import datetime
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

import ray
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search import telling
from search.results.ledger import Progress, Searched

LAST_SECONDS = 5  # that the sink may take to tell how the stage ended
NOTHING = "-"


@dataclass(frozen=True)
class Stage:
    """What is worked on."""

    phase: str  # 'search' or 'promotion'
    images: int  # that configurations are scored on
    searches: Mapping[str, int]  # how many configurations of each search are to be scored

    @property
    def total(self) -> int:
        """Configurations of all searches."""
        return sum(self.searches.values())

    def seconds_left(self, progress: Progress) -> float | None:
        """At the present rate; None while there is none."""
        return (self.total - progress.finished) / progress.rate if progress.rate else None


class Lines:
    """A line now and then, if something has been finished since the last one."""

    seconds = 15.0  # between two of them

    def __init__(self, stage: Stage):
        self._stage, self._shown = stage, 0  # configurations finished when it last told something

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error) -> None:
        pass

    def show(self, progress: Progress) -> None:
        """Tells how far the stage is."""
        if progress.finished == self._shown:
            return
        self._shown = progress.finished
        seconds = self._stage.seconds_left(progress)
        left = "time left unknown" if seconds is None else f"{seconds:.0f} s left"
        best = "none yet" if progress.best_return is None else f"{progress.best_return:.4f}"
        print(f"{progress.finished}/{self._stage.total} episodes, {progress.rate:.2f} episodes/s, {left}, "
              f"best return so far {best} on {self._stage.images} images", flush=True)  # fmt: skip


class Events(Lines):
    """Events for a program: that the stage begins, and how far it is whenever that has changed."""

    seconds = 2.0

    def __enter__(self) -> Events:
        self._told: dict[str, Searched] = {}
        stage = self._stage
        telling.event("phase", phase=stage.phase, images=stage.images, total=stage.total)
        return self

    def show(self, progress: Progress) -> None:
        """Tells how far the stage is."""
        if progress.searches == self._told:
            return
        self._told, stage = progress.searches, self._stage
        searches = [
            {"search": name, "total": total, **asdict(progress.searches.get(name, Searched()))}
            for name, total in stage.searches.items()
        ]
        telling.event(
            "progress", phase=stage.phase, images=stage.images, finished=progress.finished, total=stage.total,
            rate=progress.rate or None, seconds_left=stage.seconds_left(progress), best_return=progress.best_return,
            searches=searches,
        )  # fmt: skip


class LiveTable:
    """A table that is kept up to date, and gone in the end: the terminal is as it was.

    What is printed meanwhile stands above it.
    """

    seconds = 1.0

    def __init__(self, stage: Stage):
        self._stage = stage
        errors = sys.stderr.isatty()  # elsewhere they are kept, and would not be if they were drawn
        self._live = Live(console=Console(), auto_refresh=False, transient=True, redirect_stderr=errors)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *error) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draws the table anew."""
        self._live.update(drawn(self._stage, progress), refresh=True)


def drawn(stage: Stage, progress: Progress) -> Group:
    """How far a stage is: a line for all, and a table with a line for each search."""
    seconds = stage.seconds_left(progress)
    left = "time left unknown" if seconds is None else f"{datetime.timedelta(seconds=round(seconds))} left"
    head = (
        f"{stage.phase} on {stage.images} images: {progress.finished}/{stage.total} episodes, "
        f"{progress.rate:.2f} episodes/s, {left}"
    )
    table = Table("search", box=box.SIMPLE)
    for name in ("episodes", "best return", "its drop, points"):
        table.add_column(name, justify="right")
    for name, total in stage.searches.items():
        found = progress.searches.get(name, Searched())
        scores = (found.best_return, 4), (found.best_drop_points, 2)
        told = (NOTHING if score is None else f"{score:.{digits}f}" for score, digits in scores)
        table.add_row(name, f"{found.finished}/{total}", *told)
    return Group(Text(head), table)


class Nothing(Lines):
    """Nothing, for somebody who wants the last line of the run alone."""

    def show(self, progress: Progress) -> None:
        pass


def display(stage: Stage) -> Lines | LiveTable:
    """What fits whoever reads stdout."""
    if telling.to_programs():
        return Events(stage)
    if not telling.to_people():
        return Nothing(stage)
    return LiveTable(stage) if sys.stdout.isatty() and not Console().is_dumb_terminal else Lines(stage)


class Watch(threading.Thread):
    """Asks the sink how far a stage is, as long as the block lasts, and shows it; says so if results cannot be written.

    It ends the command if another driver has taken the run over.

    Args:
        handle: the run's sink.
    """

    def __init__(self, handle: ray.actor.ActorHandle, stage: Stage):
        super().__init__(daemon=True)
        self._sink, self._stage, self._display = handle, stage, display(stage)
        self._trouble: str | None = None
        self._ended = threading.Event()

    def __enter__(self) -> None:
        try:
            self._display.__enter__()
            self.start()
        except BaseException:  # Ctrl-C may come as soon as the cursor is hidden
            self._display.__exit__(*sys.exc_info())
            raise

    def __exit__(self, kind, *error) -> None:
        try:
            self._ended.set()
            self.join()
            if kind is None and telling.to_programs():
                with suppress(ray.exceptions.RayError):
                    self.look(LAST_SECONDS)
        finally:  # though Ctrl-C comes again
            self._display.__exit__(kind, *error)

    def run(self) -> None:
        while not self._ended.wait(self._display.seconds):
            with suppress(ray.exceptions.RayError):  # the sink is being restarted
                if self.look():
                    _thread.interrupt_main()
                    return

    def look(self, seconds: float = 5) -> bool:
        """Shows how far the stage is now; returns whether another driver has the run."""
        progress = ray.get(self._sink.progress.remote(), timeout=seconds)
        if progress.trouble != self._trouble or progress.lost:
            self._trouble = progress.trouble
            telling.trouble(told(progress))
        if not progress.lost and progress.images == self._stage.images:
            self._display.show(progress)
        return progress.lost


def told(progress: Progress) -> str:
    """What is wrong with the storage of results, or that nothing is any more."""
    if progress.lost:
        return "another driver has taken this run over: this one ends"
    if progress.trouble is None:
        return "results are written again"
    return (f"results cannot be written or read ({progress.trouble}): {progress.waiting} finished configurations wait, "
            "and the search waits for them; trying again")  # fmt: skip
