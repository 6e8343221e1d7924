"""Who reads a command's stdout: people, somebody who wants its last line alone, or a program that wants events.

People's text is printed, as everywhere. `begun` sends it nowhere where nobody wants it, and what others want goes by
`event` and `trouble`. results/README.md has the schema of events.
"""

from __future__ import annotations

import datetime
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

SCHEMA_VERSION = 1  # of events


class _Muted(io.TextIOBase):
    """A stdout whose text goes nowhere; it keeps the last line.

    It has the file number of the stream behind it, by which `approx_env.errors` sees whether anybody still reads.
    """

    def __init__(self, behind: TextIO):
        self.behind = behind
        self.last_line = ""
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)
        return len(text)

    def fileno(self) -> int:
        return self.behind.fileno()


class _Events(_Muted):
    """The same where a program reads events."""


@contextmanager
def begun(*, quiet: bool = False, as_json: bool = False) -> Iterator[None]:
    """Settles for a block who reads stdout: people, if neither is asked for.

    Args:
        quiet: only the block's last line is printed, when it ends.
        as_json: only events are printed, each as JSON on a line. One that ends the block by an exception is told.
    """
    if not quiet and not as_json:
        yield
        return
    muted = (_Events if as_json else _Muted)(sys.stdout)
    try:
        with redirect_stdout(muted):
            try:
                yield
            except BaseException as error:
                event("ended", reason="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
                raise
    finally:
        if quiet and muted.last_line:
            print(muted.last_line, flush=True)


def to_programs() -> bool:
    """Whether a program reads events."""
    return isinstance(sys.stdout, _Events)


def to_people() -> bool:
    """Whether people read all that is printed."""
    return not isinstance(sys.stdout, _Muted)


def event(name: str, **facts: Any) -> None:
    """Tells a program, if one reads; people are told by `print`.

    Args:
        facts: what JSON takes.
    """
    if to_programs():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"event": name, "time": now, **facts})
        print(line, file=sys.stdout.behind, flush=True)


def trouble(text: str) -> None:
    """Tells whoever reads what goes wrong while the command goes on; who wants it quiet reads it on stderr."""
    if to_programs():
        event("trouble", text=text)
    else:
        print(text, file=sys.stdout if to_people() else sys.stderr, flush=True)
