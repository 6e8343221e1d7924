"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line for the heads and one for each row; cells are written by `str`, each on one line.

    >>> print(table(("network", "layers"), [("alexnet", 7)]))
    | network | layers |
    |---|---|
    | alexnet | 7 |

    Raises:
        ValueError: a row has more or fewer cells than there are heads.
    """
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"a row needs {len(heads)} cells, got {len(row)}: {row}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in cells)} |"
