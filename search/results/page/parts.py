"""What sections of a page are made of. The template knows how each is shown; texts are data, and are escaped there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A table whose columns sort.

    Attributes:
        caption: what it says.
        rows: cells, as texts.
        keys: of rows that can be selected: what draws the same thing in a figure has the row's key.
        filtered: whether there is a field that hides rows.
        folded: whether it is shown only when asked for.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: Sequence[str] = ()
    filtered: bool = False
    folded: bool = False
    kind: str = "table"

    @property
    def texts(self) -> set[int]:
        """Columns that hold no numbers."""
        numbers = "0123456789+-"
        return {k for k in range(len(self.heads)) if not any(row[k] and row[k][0] in numbers for row in self.rows)}


@dataclass(frozen=True)
class Drawing:
    """A figure, and the table of what it shows (None: the table follows it)."""

    svg: Markup
    caption: str
    table: Table | None
    kind: str = "drawing"


@dataclass(frozen=True)
class Drawings:
    """Small figures side by side."""

    drawings: Sequence[Drawing]
    kind: str = "drawings"


@dataclass(frozen=True)
class Picture:
    """A small image, and what is said of it."""

    source: str  # a data URI
    alt: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Pictures:
    """Images side by side."""

    pictures: Sequence[Picture]
    kind: str = "pictures"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    facts: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Link:
    """A folder beside the page."""

    text: str
    address: str
    kind: str = "link"


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    ident: str
    title: str
    parts: Sequence[Any]
