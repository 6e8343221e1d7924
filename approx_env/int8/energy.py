"""Energy of multiplications, by what they read: cited tables, or a file of the user's.

Arithmetic alone is counted. Nothing here knows of memory or control, which cost a chip more than arithmetic does.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from approx_env.errors import InputError

SCOPE = "arithmetic only: no memory, no control"
FOLDER = Path(__file__).parent / "costs"
SHIPPED = ("horowitz-45nm", "jouppi-7nm")
HIGHEST_PJ = 1e6
LONGEST_BYTES = 2**16  # of a file


@dataclass(frozen=True)
class Energy:
    """What one multiply-accumulate takes, in picojoules."""

    name: str  # of the table, as outputs show it
    source: str  # where its numbers were published
    zero_pj: float  # its activation is 0, and it is skipped
    shared_pj: float  # its activation is v1 or v2, or another of few values: the product exists, and is added
    exact_pj: float  # it is computed, > 0

    def relative(self, shares: Sequence[float]) -> float:
        """Energy of multiplications over that of the exact network's same ones, on hardware that skips no zeros.

        The exact network reads zeros, too. Hardware that does not look for them multiplies them.

        Args:
            shares: of multiplications that read zero, v1, v2 and exact codes; they add up to 1.

        >>> read("horowitz-45nm").relative((0.5, 0.25, 0.25, 0.0))
        0.16666666666666669
        """
        zero, v1, v2, exact = map(float, shares)
        return (zero * self.zero_pj + (v1 + v2) * self.shared_pj + exact * self.exact_pj) / self.exact_pj


def read(cost: str) -> Energy:
    """The table of that name, if it is one of `SHIPPED`, else that of the TOML file.

    Raises:
        InputError: there is no such file, or it does not hold the fields of `Energy` and these alone.
    """
    path = FOLDER / f"{cost}.toml" if cost in SHIPPED else Path(cost)
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_BYTES + 1)
        if len(text) > LONGEST_BYTES:
            raise ValueError(f"it is longer than {LONGEST_BYTES} bytes")
        table = tomllib.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--cost must be {' or '.join(SHIPPED)} or a TOML file, and {cost} cannot be read ({error}): copy one of "
            f"{FOLDER} and change its numbers"
        ) from error
    if problems := _problems(table):
        raise InputError(
            f"--cost {cost}: {'; '.join(problems)}: {FOLDER / SHIPPED[0]}.toml shows what a table must hold"
        )
    return Energy(**{name: value if isinstance(value, str) else float(value) for name, value in table.items()})


def _problems(table: dict) -> list[str]:
    names = [field.name for field in fields(Energy)]
    found = [f"it lacks {name}" for name in names if name not in table]
    found += [f"{name!r} is unknown" for name in table if name not in names]
    for name in ("name", "source"):
        if name in table and not (isinstance(table[name], str) and table[name].strip() and table[name].isprintable()):
            found.append(f"{name} must be a line of text, got {table[name]!r:.60}")
    for name in names[2:]:
        value = table.get(name, 1)
        if type(value) not in (int, float) or not 0 <= value <= HIGHEST_PJ or (name == "exact_pj" and value == 0):
            least = "above 0" if name == "exact_pj" else "at least 0"
            found.append(f"{name} must be a number {least} and at most {HIGHEST_PJ:g}, got {value!r:.60}")
    return found
