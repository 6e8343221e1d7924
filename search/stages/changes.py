"""Images whose prediction a configuration changes."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Evaluator, Problem
from search.results import store

LOOKED_AT = 512  # images: enough to find some, and soon scored
SHOWN = 24
LONGEST_SIDE = 64  # of a picture, pixels: a page of pictures must stay below 1 MB


def parquet(problem: Problem, configuration: Configuration) -> bytes:
    """The first images of a problem that teacher and student call differently, as the bytes of `changed.parquet`.

    Args:
        problem: of images that are not test's. The first 512 of them are looked at.
        configuration: of the student.

    Returns:
        At most 24 rows: the image's position, its label, what the exact teacher and the student say, and a PNG.
    """
    few = replace(problem, images=problem.images[:LOOKED_AT], labels=problem.labels[:LOOKED_AT])
    scorer, names = Evaluator(few), problem.network.classes
    (logits,) = scorer.taken(configuration).logits()
    before, after = (np.asarray(each).argmax(1) for each in (scorer.teacher_logits, logits))
    rows = [
        {"position": int(k), "label": names[few.labels[k]], "teacher": names[before[k]], "student": names[after[k]],
         "png": png(few.images[k])}
        for k in np.flatnonzero(before != after)[:SHOWN]
    ]  # fmt: skip
    return store.parquet(rows, store.CHANGED_COLUMNS)


def png(pixels: np.ndarray) -> bytes:
    """An image `(c, h, w) uint8` of one or three channels as a PNG whose sides are at most 64 pixels."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    made = io.BytesIO()
    image.save(made, "PNG", optimize=True)
    return made.getvalue()
