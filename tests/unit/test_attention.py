"""Attention maps of a few images, as a page shows them."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from approx_env.engines import reference
from approx_env.scoring.evaluator import Evaluator
from search.stages import attention

HARSH = [(40, 41, 42, 43, 255)] * 3


def rows(problem, configuration) -> list[dict]:
    return pq.read_table(io.BytesIO(attention.parquet(Evaluator(problem).engine, problem, configuration))).to_pylist()


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_maps_are_energies_of_the_codes_on_one_scale(problem, small):
    """Layer 'three' is linear: it has no places, and so no map."""
    found = rows(problem, HARSH)
    assert [(row["position"], row["layer"]) for row in found] == [(k, "one") for k in range(attention.SHOWN)]
    network, images = small.network, small.images[: attention.SHOWN]
    configuration = {layer: (codes[:4], codes[4]) for layer, codes in zip(network.layers, HARSH, strict=True)}
    both = [reference.forward(network, images, each)["one"] for each in ({}, configuration)]
    for k, row in enumerate(found):
        maps = [(codes[k].astype(float) ** 2).sum(0) for codes in both]
        maps = [each / np.linalg.norm(each) if each.any() else each for each in maps]
        highest = max(each.max() for each in maps)
        for who, expected in zip(("teacher", "student"), maps, strict=True):
            assert np.array_equal(picture(row[who]), np.rint(255 * expected / highest)), who
        assert row["label"] == ("no", "yes")[small.labels[k]]
        assert np.array_equal(picture(row["png"]).transpose(2, 0, 1), images[k])


def test_an_exact_student_looks_where_its_teacher_does(problem):
    assert all(row["teacher"] == row["student"] for row in rows(problem, [None] * 3))


def test_fewer_images_are_all_shown(problem):
    assert len(rows(replace(problem, images=problem.images[:2], labels=problem.labels[:2]), HARSH)) == 2
