"""Where teacher and student look: attention maps of a few images, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from approx_env.engines.base import Engine
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Problem
from search.results import store
from search.stages.changes import png

SHOWN = 4  # images


def parquet(engine: Engine, problem: Problem, configuration: Configuration) -> bytes:
    """Attention maps of a problem's first four images, as the bytes of `attention.parquet`.

    Args:
        engine: of the problem's network.
        problem: of images that are not test's.
        configuration: of the student.

    Returns:
        A row for each image and each attention layer that has places: the image's position and label, and PNGs of the
        image, the exact teacher's map and the student's. A map is an image's energy at each place, divided by its L2
        norm, as the attention-transfer loss has it. Both maps of a row share one scale, from black to white.
    """
    images, tmax = problem.images[:SHOWN], problem.calibration.tmax
    teacher = _maps(engine, images, [None] * len(tmax), tmax)
    student = _maps(engine, images, configuration, tmax)
    rows = []
    for k, image in enumerate(images):
        for layer in teacher:
            pair = np.stack([teacher[layer][k], student[layer][k]])
            shades = np.rint(255 * pair / max(pair.max(), np.finfo(float).tiny)).astype(np.uint8)
            of_teacher, of_student = (png(shade[None]) for shade in shades)
            rows.append({"position": k, "label": problem.network.classes[problem.labels[k]], "layer": layer,
                         "png": png(image), "teacher": of_teacher, "student": of_student})  # fmt: skip
    return store.parquet(rows, store.ATTENTION_COLUMNS)


def _maps(engine: Engine, images: np.ndarray, configuration: Sequence, limits: Sequence[int]) -> dict[str, np.ndarray]:
    """Attention maps `(n, h, w)` of norm 1, or 0, by layer."""
    state, found = engine.start(images), {}
    for layer, codes, tmax in zip(engine.network.layers, configuration, limits, strict=True):
        state = engine.advance(state, codes, tmax)
        shape = engine.network.shapes[layer]
        if layer in engine.network.attention and len(shape) == 3:
            energy = state.energy.cpu().numpy().astype(np.float64)
            norms = np.sqrt((energy**2).sum(1, keepdims=True))
            found[layer] = np.divide(energy, norms, out=np.zeros_like(energy), where=norms > 0).reshape(-1, *shape[1:])
    return found
