"""Command-line options as one table: a dataclass whose fields know their flag, bounds and help.

All problems of a command line are reported at once. An empty value is never taken for the default.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from approx_env.errors import InputError

Table = TypeVar("Table")
HIGHEST_BITS = 63  # of a whole number: what numpy, torch and Parquet can hold with a sign
Contradictions = Callable[[Any, set[str]], Iterable[tuple[set[str], str]]]


def option(
    default: Any,
    help: str,
    *,
    type: Callable[[str], Any] = str,
    kind: str = "",
    choices: tuple[str, ...] = (),
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    metavar: str | None = None,
) -> Any:
    """A field of a table of options; its flag is its name with dashes.

    Args:
        type: makes the value from its text, or raises ValueError; `kind` says what it takes.
        choices: the only texts allowed, if any.
        low, high, above, below: bounds of a number.
    """
    rules = {"help": help, "type": type, "kind": kind, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=rules | {"low": low, "high": high, "above": above, "below": below})


def integer(default: int | None, help: str, low: int, **rules) -> Any:
    """A field for a whole number of at least `low`."""
    return option(default, help, type=int, kind="a whole number", low=low, metavar="N", **rules)


def number(default: float | None, help: str, **rules) -> Any:
    """A field for a number."""
    return option(default, help, type=float, kind="a number", metavar="X", **rules)


def listed(part: Callable[[str], Any], *, distinct: bool = True) -> Callable[[str], tuple]:
    """A type for comma-separated values, all different."""

    def read(text: str) -> tuple:
        values = tuple(part(piece) for piece in text.split(","))
        if distinct and len(set(values)) < len(values):
            raise ValueError
        return values

    return read


def on_or_off(text: str) -> bool:
    """A type for switches."""
    return {"on": True, "off": False}[text]


def switch(default: bool, help: str) -> Any:
    """A field that is 'on' or 'off'; its flag alone says 'on'."""
    return option(default, help, type=on_or_off, choices=("on", "off"))


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def parse(
    table: type[Table],
    prog: str,
    description: str,
    argv: list[str] | None,
    contradictions: Contradictions | None = None,
    only: Collection[str] | None = None,
) -> Table:
    """Reads the command line into a `table`.

    Args:
        only: names of the fields that may be given; the others have their defaults.
        contradictions: gives what cannot hold together, from the values and the names of those that were given: the
            options involved, and the sentence that says so.

    Raises:
        InputError: with every problem there is.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    entries = [entry for entry in fields(table) if only is None or entry.name in only]
    for entry in entries:
        rules = entry.metadata
        text = rules["help"]
        if entry.default not in (None, MISSING):
            text += f" (default {shown(entry.default)})"
        metavar = rules["metavar"] or "{" + ",".join(rules["choices"]) + "}"
        alone = {"nargs": "?", "const": "on"} if rules["type"] is on_or_off else {}
        parser.add_argument(flag(entry.name), metavar=metavar, help=text.replace("%", "%%"), **alone)
    given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    problems: dict[str, str] = {}
    values = {}
    for entry in entries:
        if entry.name in given:
            value, problem = _convert(entry, given[entry.name])
            if problem:
                problems[entry.name] = problem
            else:
                values[entry.name] = value
    made = table(**values)
    found = contradictions(made, set(given)) if contradictions else ()
    contradicted = [text for involved, text in found if not involved & set(problems)]
    if problems or contradicted:
        raise InputError([*problems.values(), *contradicted])
    return made


def shown(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(entry, text: str) -> tuple[Any, str | None]:
    rules, name = entry.metadata, flag(entry.name)
    if any("\ud800" <= character <= "\udfff" for character in text):  # how Python hands on bytes that are no UTF-8
        return None, f"{name} must be UTF-8 text, got {text!a}"
    if not text.strip():
        return None, f"{name} must be given a value, got {text!r}: leave it out where the default will do"
    if rules["choices"] and text not in rules["choices"]:
        return None, f"{name} must be {_either(rules['choices'])}, got '{text}'"
    try:
        value = rules["type"](text)
    except ValueError:
        return None, f"{name} must be {rules['kind']}, got '{text}'"
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, int) and part.bit_length() > HIGHEST_BITS for part in numbers):
        return None, f"{name} must be a whole number of at most {HIGHEST_BITS} bits, got {text}"
    if any(isinstance(part, int | float) and not _within(part, rules) for part in numbers):
        return None, f"{name} must be {_bounds(rules) or rules['kind']}, got {text}"
    return value, None


def _within(value: float, rules) -> bool:
    return rules["low"] <= value <= rules["high"] and rules["above"] < value < rules["below"]  # false for NaN


def _bounds(rules) -> str:
    words = {"above": "above", "low": "at least", "below": "below", "high": "at most"}
    return " and ".join(f"{word} {rules[key]:g}" for key, word in words.items() if math.isfinite(rules[key]))


def _either(choices: tuple[str, ...]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} ({self.prog} --help explains the options)")
