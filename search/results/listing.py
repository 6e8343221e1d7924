"""Prints records for people, as a table, or for programs: a JSON object a line, or CSV."""

from __future__ import annotations

import csv
import datetime
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]
WIDE = 10_000  # columns of a table that is not wrapped: `| less -S` and `| grep` see whole lines


def print_json(records: Iterable[Record]) -> None:
    """Prints each record as a JSON object on one line; times are in ISO 8601."""
    for record in records:
        print(json.dumps(record, default=_as_json))


def print_csv(records: Sequence[Record], columns: Sequence[str]) -> None:
    """Prints a line of heads and a line for each record; what is missing is empty."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        values = [record.get(name) for name in columns]
        writer.writerow([value.isoformat() if isinstance(value, datetime.datetime) else value for value in values])


def print_table(records: Sequence[Record], columns: Sequence[str]) -> None:
    """Prints an aligned table; numbers are rounded, and what is missing is '-'."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in columns:
        numbers = any(isinstance(record.get(name), int | float) for record in records)
        table.add_column(Text(name), justify="right" if numbers else "left", no_wrap=True)
    for record in records:
        table.add_row(*(Text(shown(name, record.get(name))) for name in columns))
    console = Console(width=WIDE)
    with console.capture() as drawn:  # rich itself ends a command whose reader has gone
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def shown(name: str, value: Any) -> str:
    """A value for people; `name` is its column, whose ending tells the unit."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if name.endswith("_points") else f"{value:.4f}"
    if isinstance(value, datetime.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return " ".join(str(value).split())


def _as_json(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
