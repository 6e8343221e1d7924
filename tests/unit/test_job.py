"""What a run works on, of the digits."""

import numpy as np
import pytest

from approx_env.errors import InputError
from search import config, job

LITTLE = "--calib-batches 1 --calib-batch-size 8 --results {} "


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


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema_version": 1, "arguments": null}', '{"schema_version": 1, "arguments": {"x": 1}}'],
)
def test_what_is_no_run_cannot_go_on(tmp_path, content):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text(content)
    for name in ("r", "none"):
        with pytest.raises(InputError, match=f"{name} holds no run to go on with"):
            job.prepare(config.parse(["--resume", name, "--results", str(tmp_path)]))


def test_a_run_that_was_begun_with_something_else_cannot_go_on(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r")
    described = job.describe(made)
    _begin(made, described)
    for name, value, said in (
        ("teacher", {"sha256": "another"}, "another teacher"),
        ("splits", {}, "another splits"),
        ("layers", {}, "another layers"),
    ):
        made.folder.write_json("run.json", described | {name: value})
        with pytest.raises(InputError, match=said):
            job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    made.folder.write_json("run.json", described | {"versions": {"torch": "1.0"}})
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert again.settings.search_images == 8 and not again.finished
    assert any(text.startswith("torch") and text.endswith("was 1.0") for text in job.differences(again))


def _begin(made: job.Job, described: dict) -> None:
    (made.folder / "episodes").create()
    made.folder.write_json("run.json", described)


def test_damaged_files_are_named(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r")
    _begin(made, job.describe(made))
    for name in ("episodes/part-1.parquet", "ppo-seed0.safetensors"):
        path = tmp_path / "r" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(InputError) as caught:
        job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert len(caught.value.problems) == 2
    assert all("is damaged: remove it" in problem for problem in caught.value.problems)


def test_more_images_than_the_search_split_has(tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, "--rungs 64,300 --calib-batches 65")
    assert len(caught.value.problems) == 2
    assert caught.value.problems[1] == "--rungs 64,300: the search split of digits has 256: ask for fewer"
