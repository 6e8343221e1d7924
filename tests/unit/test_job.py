"""What a run works on, of the digits."""

import numpy as np
import pytest

from approx_env.errors import InputError
from search import config, job

LITTLE = "--calib-batches 1 --batch-size 8 --results {} "


def prepare(folder, arguments: str) -> job.Job:
    return job.prepare(config.parse((LITTLE.format(folder) + arguments).split()))


def test_each_rung_begins_with_the_images_of_the_one_before(tmp_path, digits):
    made = prepare(tmp_path, "--rungs 8,16,48")
    images, labels = digits.load("search")
    assert [len(rung.labels) for rung in made.rungs] == [8, 16, 48]
    for rung in made.rungs:
        assert np.array_equal(rung.images, images[: len(rung.labels)])
        assert np.array_equal(rung.labels, labels[: len(rung.labels)])
        assert (rung.network, rung.calibration, rung.reward) == (
            made.problem.network, made.problem.calibration, made.problem.reward
        )  # fmt: skip
    assert made.problem is made.rungs[0] and made.settings.search_images == 8
    assert job.describe(made)["arguments"]["rungs"] == (8, 16, 48)


def test_without_rungs_there_is_one(tmp_path):
    made = prepare(tmp_path, "--search-images 8")
    assert [len(rung.labels) for rung in made.rungs] == [8]
    assert job.describe(made)["arguments"]["rungs"] is None


def test_more_images_than_the_search_split_has(tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, "--rungs 64,300 --calib-batches 65")
    assert len(caught.value.problems) == 2
    assert caught.value.problems[1] == "--rungs 64,300: the search split of digits has 256: ask for fewer"
