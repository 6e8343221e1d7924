"""Images whose prediction a configuration changes."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search.stages import changes

HARSH = [(40, 41, 42, 43, 255)] * 3  # nearly all that is left is 43


def rows(problem, configuration) -> list[dict]:
    return pq.read_table(io.BytesIO(changes.parquet(problem, configuration))).to_pylist()


def test_each_is_told_with_both_predictions_and_its_picture(problem, small):
    found = rows(problem, HARSH)
    assert 0 < len(found) <= changes.SHOWN
    for row in found:
        assert {row["teacher"], row["student"]} == {"no", "yes"}
        assert row["label"] == ("no", "yes")[small.labels[row["position"]]]
        picture = np.asarray(Image.open(io.BytesIO(row["png"])))
        assert np.array_equal(picture.transpose(2, 0, 1), small.images[row["position"]])


def test_without_an_approximation_there_is_none(problem):
    assert rows(problem, [None] * 3) == []


def test_no_more_are_kept_than_a_page_shows(problem, monkeypatch):
    every = [row["position"] for row in rows(problem, HARSH)]
    monkeypatch.setattr(changes, "SHOWN", 2)
    assert [row["position"] for row in rows(problem, HARSH)] == every[:2]


def test_only_the_first_images_are_looked_at(problem, monkeypatch):
    monkeypatch.setattr(changes, "LOOKED_AT", 4)
    assert all(row["position"] < 4 for row in rows(problem, HARSH))


@pytest.mark.parametrize(("shape", "size"), [((3, 224, 100), (29, 64)), ((1, 8, 8), (8, 8))])
def test_a_picture_is_at_most_64_pixels_a_side(shape, size):
    assert Image.open(io.BytesIO(changes.png(np.zeros(shape, np.uint8)))).size == size
