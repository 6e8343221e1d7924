"""The one error that bad input ends in, and how a command reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class InputError(ValueError):
    """Something that a person gave cannot be used.

    Args:
        problems: one sentence, or several that are reported together; each says what must hold, what came and how
            to fix it, and names the flag or the file.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


def exit_status(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit status: 0, 2 for bad input (told on stderr), 130 after Ctrl-C."""
    try:
        command()
    except InputError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
