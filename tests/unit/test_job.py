"""What a run works on, of the digits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from approx_env.errors import InputError
from approx_env.teachers import store
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
        ("cost", described["cost"] | {"exact_pj": 0.4}, "another cost"),
    ):
        made.folder.write_json("run.json", described | {name: value})
        with pytest.raises(InputError, match=said):
            job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    made.folder.write_json("run.json", described | {"versions": {"torch": "1.0"}})
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert again.settings.search_images == 8 and not again.finished
    assert any(text.startswith("torch") and text.endswith("was 1.0") for text in job.differences(again))


def test_a_run_from_before_the_cost_model_goes_on(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r")
    described = {name: value for name, value in job.describe(made).items() if name != "cost"}
    del described["arguments"]["cost"]
    _begin(made, described)
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert again.problem.energy.name == "Horowitz 45 nm"


def test_the_cost_table_is_part_of_the_problem_and_named_with_the_run(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --cost jouppi-7nm")
    assert {each.energy.name for each in (*made.rungs, *made.held_out.values())} == {"Jouppi 7 nm"}
    told = job.describe(made)
    assert told["arguments"]["cost"] == "jouppi-7nm"
    assert (told["cost"]["name"], told["cost"]["scope"]) == ("Jouppi 7 nm", "arithmetic only: no memory, no control")


def test_a_cost_table_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="--cost must be .* and nothing cannot be read"):
        prepare(tmp_path, "--search-images 8 --cost nothing")
    assert not list(tmp_path.iterdir())


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
    assert all(" is damaged or of another run (" in problem for problem in caught.value.problems)


def test_a_folder_that_was_renamed_goes_on_as_the_run_that_it_is(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r")
    _begin(made, job.describe(made))
    (tmp_path / "r").rename(tmp_path / "moved")
    again = job.prepare(config.parse(["--resume", "moved", "--results", str(tmp_path)]))
    assert again.name == "r" and again.folder.path == str(tmp_path / "moved")


def test_a_run_with_every_option_goes_on_as_it_was_begun(tmp_path):
    options = (
        "--run-name r --algorithm ppo --rungs 8,16 --episodes 6 --seeds 3,1 --lr 0.01 --iteration-episodes 4 "
        "--accuracy soft --top 2 "
        "--kd-temperature 3 --kd-weight 0.5 --at-weight 0 --tmax-percentile 80 --tmax-offset -2 --max-acc-drop 1.5 "
        "--engine portable --gpus-per-runner 0 --cost jouppi-7nm --envs-per-runner 2 --num-env-runners 1 "
        "--sites all --sensitivity --search-tmax --objective return --budget-exact 0.5"
    )
    made = prepare(tmp_path, options)
    _begin(made, job.describe(made))
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path), "--num-env-runners", "1"]))
    assert replace(again.settings, resume=None, run_name="r") == made.settings


def test_a_run_from_before_there_were_sites_has_the_standard_ones(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r")
    described = job.describe(made)
    for name in ("sites", "sensitivity"):
        del described["arguments"][name]
    del described["share_of_all_macs"]
    _begin(made, described)
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert (again.settings.sites, again.settings.sensitivity) == ("standard", False)
    assert again.problem.network.layers == made.problem.network.layers


def test_a_run_from_before_there_was_a_budget_has_none_and_goes_on(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r")
    described = job.describe(made)
    for name in ("objective", "budget_exact", "search_tmax"):
        del described["arguments"][name]
    _begin(made, described)
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert (again.settings.objective, again.settings.budget_exact, again.settings.search_tmax) == (
        "return",
        None,
        False,
    )


def test_a_searched_tmax_starts_at_the_calibrated_one(tmp_path):
    fixed, free = (prepare(tmp_path, f"--search-images 8 {more}") for more in ("", "--search-tmax"))
    assert (fixed.problem.calibration.search_tmax, free.problem.calibration.search_tmax) == (False, True)
    assert free.problem.calibration.tmax == fixed.problem.calibration.tmax
    assert job.describe(free)["layers"] == job.describe(fixed)["layers"]


def test_a_budget_that_no_configuration_can_keep_is_refused_before_anything_starts(tmp_path):
    """The nine layers of the shipped SqueezeNet feed 14.0 % of all multiplications."""
    with pytest.raises(InputError) as raised:
        prepare(tmp_path, "--search-images 8 --budget-exact 0.5")
    (text,) = raised.value.problems
    assert text.startswith("--budget-exact 0.5: the layers feed ") and "or take --sites all" in text
    assert prepare(tmp_path, "--search-images 8 --budget-exact 0.9").settings.budget_exact == 0.9
    assert prepare(tmp_path, "--search-images 8 --budget-exact 0.5 --sites all").settings.budget_exact == 0.5
    with pytest.raises(InputError, match=r"stay exact whatever is chosen: give more than 0\.05\d+$"):
        prepare(tmp_path, "--search-images 8 --budget-exact 0.05 --sites all")


def test_sites_are_those_of_the_run(tmp_path):
    made = prepare(tmp_path, "--search-images 8 --run-name r --sites all")
    assert len(made.problem.network.layers) == len(made.problem.calibration.layers) == 17
    assert {rung.network for rung in (*made.rungs, *made.held_out.values())} == {made.problem.network}
    described = job.describe(made)
    assert round(described["share_of_all_macs"], 3) == 0.946 and len(described["layers"]) == 17
    _begin(made, described)
    again = job.prepare(config.parse(["--resume", "r", "--results", str(tmp_path)]))
    assert again.problem.network.layers == made.problem.network.layers
    with pytest.raises(InputError, match="--sites is what run r was started with: leave it out"):
        config.parse(["--resume", "r", "--sites", "all"])


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (tuple("123456789"), "knows 9 classes, and digits has 10 classes: give one"),
        (tuple("0123456798"), "knows '9' as class 8, and digits has '8' as class 8: give one"),
        ((*"012345678", "nine"), "knows 'nine' as class 9, and digits has '9' as class 9: give one"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(tmp_path, digits, classes, told):
    shipped = store.read(store.path_of("squeezenet", "digits"))
    network = SimpleNamespace(model="squeezenet", classes=classes)
    other = replace(shipped, network=network)
    (problem,) = job._mismatches(config.Settings(model="squeezenet", search_images=8), digits, other)
    assert told in problem


def test_a_teacher_of_other_images_is_noted(tmp_path, digits):
    made = prepare(tmp_path, "--search-images 8")
    about = {name: value for name, value in made.teacher.about.items() if name != "images"}
    for said, noted in (({}, False), ({"images": digits.digest}, False), ({"images": "another"}, True),
                        ({"images": "another", "dataset": "cifar10"}, False)):  # fmt: skip
        other = replace(made, teacher=replace(made.teacher, about=about | said))
        assert (job.note_on_images(other.teacher, other.dataset) is not None) == noted


def test_calibrated_layers_are_joined_by_name(tmp_path, monkeypatch):
    calibrate = job.calibration.calibrate

    def backwards(*arguments, **options):
        made = calibrate(*arguments, **options)
        return replace(made, layers=made.layers[::-1])

    right = prepare(tmp_path, "--search-images 8").problem
    monkeypatch.setattr(job.calibration, "calibrate", backwards)
    problem = prepare(tmp_path, "--search-images 8").problem
    assert [layer.name for layer in problem.calibration.layers] == list(problem.network.layers)
    assert problem.calibration.tmax == right.calibration.tmax


def test_more_images_than_the_search_split_has(tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(tmp_path, "--rungs 64,300 --calib-batches 65")
    assert len(caught.value.problems) == 2
    assert caught.value.problems[1] == "--rungs 64,300: the search split of digits has 256: ask for fewer"


def test_a_run_is_of_the_algorithm_that_auto_stands_for(tmp_path):
    made = prepare(tmp_path, "--model squeezenet_compact")
    assert made.settings.algorithm == "cma" and made.name.startswith("squeezenet_compact-digits-cma-")
    assert job.describe(made)["arguments"]["algorithm"] == "cma"
