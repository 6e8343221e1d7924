"""The sections of a page about classes and images: what a configuration changes, and where it looks."""

from __future__ import annotations

import base64
from typing import Any

from search.results import store
from search.results.page import figures
from search.results.page.parts import Drawing, Picture, Pictures, Section, Table, Text
from search.results.page.reading import Run

DRAWN = 20  # classes, at most


def changes(run: Run) -> Section | None:
    """What each class gains or loses, and images whose prediction changed."""
    found = run.tables.get(store.CLASSES)
    if found is None:
        return None
    known = found.dropna().sort_values("change_points")
    drawn = known.loc[known["change_points"].abs().nlargest(DRAWN).index].sort_values("change_points")
    heads = ("class", "test images", "exact teacher", "these codes", "change, points")
    rows = [(each["class"], str(each["images"]), f"{each['acc_teacher']:.2%}", f"{each['acc_student']:.2%}",
             f"{each['change_points']:+.2f}") for each in known.to_dict("records")]  # fmt: skip
    table = Table("Accuracy by class", heads, rows, folded=True)
    if not drawn["change_points"].any():
        parts: list[Any] = [Text("No class gains or loses on test."), table]
    else:
        alt = (f"Change of accuracy by class, from {drawn['change_points'].min():.2f} to "
               f"{drawn['change_points'].max():.2f} points")  # fmt: skip
        svg = figures.drawn(figures.classes, "classes", alt, list(drawn["class"]), list(drawn["change_points"]),
                            height=1.2 + 0.24 * len(drawn))  # fmt: skip
        most = f" The {DRAWN} greatest changes of {len(known)} classes." if len(known) > DRAWN else ""
        parts = [Drawing(svg, f"What each class gains or loses.{most}", table)]
    return Section("classes", "Classes", [*parts, *_pictures(run)])


def _pictures(run: Run) -> list[Any]:
    found = run.tables.get(store.CHANGED)
    if found is None:
        return []
    if found.empty:
        return [Text("No prediction changes among the first validation images.")]
    pictures = [
        Picture(
            _uri(each["png"]),
            f"Validation image {each['position']}",
            (f"is {each['label']}", f"teacher: {each['teacher']}", f"codes: {each['student']}"),
        )
        for each in found.to_dict("records")
    ]
    return [Text("Validation images whose prediction these codes change:"), Pictures(pictures)]


def attention(run: Run) -> Section | None:
    """Attention maps of a few images, the teacher's beside the student's."""
    found = run.tables.get(store.ATTENTION)
    if found is None or found.empty:
        return None
    told = ("Where each layer is active, on the first validation images: white is most. The exact teacher's map stands "
            "before that under these codes; the attention-transfer loss compares the two.")  # fmt: skip
    parts: list[Any] = [Text(told)]
    for position, rows in found.groupby("position"):
        image = f"Validation image {position}"
        pictures = [Picture(_uri(rows["png"].iloc[0]), image, (f"is {rows['label'].iloc[0]}",))]
        for row in rows.to_dict("records"):
            for who, words in (("teacher", "teacher"), ("student", "codes")):
                alt = f"{image}: attention of {row['layer']}, {words}"
                pictures.append(Picture(_uri(row[who]), alt, (row["layer"], words)))
        parts.append(Pictures(pictures))
    return Section("attention", "Attention", parts)


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
