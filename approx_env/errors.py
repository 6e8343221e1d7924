"""The one error that bad input ends in."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Something that a person gave cannot be used.

    Args:
        problems: one sentence, or several that are reported together; each says what must hold, what came and how
            to fix it, and names the flag or the file.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))
