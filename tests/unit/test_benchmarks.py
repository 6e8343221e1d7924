"""What the benchmarks compare does the same job, and their arithmetic."""

import json
from itertools import islice

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from approx_env import env, tap
from approx_env.int8.nodes import Concatenation
from approx_env.scoring.evaluator import Evaluator
from benchmarks import bench_cluster, bench_nodes, onnx_twin, ratios, record, search_job, timing, trace, workload
from benchmarks.float_reference import FloatReference

IMAGES = 128


@pytest.fixture(scope="module", params=["squeezenet", "resnet8"])
def problem(request):
    return workload.problem(request.param, IMAGES)


def test_images_beyond_the_digits_repeat_them(digits):
    pixels, labels = digits.load("search")
    more, their_labels = workload.images(len(pixels) + 3)
    assert np.array_equal(more, np.concatenate([pixels, pixels[:3]]))
    assert np.array_equal(their_labels, np.concatenate([labels, labels[:3]]))


def test_the_float_reference_scores_as_the_evaluator_does(problem):
    evaluator, reference = Evaluator(problem), FloatReference(problem)
    generator = np.random.default_rng(0)
    harsh = tuple(tap.random_codes(tmax, generator) for tmax in problem.calibration.tmax)
    for configuration in (problem.calibration.quintile, harsh):
        ours, plain = evaluator.evaluate(configuration), reference.evaluate(configuration)
        assert plain.accuracy == pytest.approx(ours.accuracy, abs=1 / IMAGES)
        assert plain.kd == pytest.approx(ours.kd, abs=3e-3)
        assert plain.at == pytest.approx(ours.at, abs=3e-3)


def test_the_onnx_twin_gives_the_engines_logits(problem):
    model = onnx_twin.convert(problem.network).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"input": problem.images})[0]
    ours = workload.bare_engine(problem.network).forward(problem.images).numpy()
    assert (theirs.argmax(1) == ours.argmax(1)).mean() >= 0.99
    assert np.abs(theirs - ours).max() < 0.05 * np.abs(ours).max()


def test_no_two_configurations_begin_alike(problem):
    tmax = problem.calibration.tmax
    drawn = list(islice(workload.configurations(problem.calibration), 50))
    assert len({configuration[0] for configuration in drawn}) == 50
    assert not any(tap.problems(codes, limit) for one in drawn for codes, limit in zip(one, tmax, strict=True))


def test_side_by_side_gives_every_run_the_same_number_of_turns_and_changes_who_begins():
    order = []
    seconds = timing.side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert "".join(order) == "abbaab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_claim_holds_by_its_median():
    assert ratios.summarise("episode_over_pass", [0.9, 1.0, 1.3])["holds"]
    missed = ratios.summarise("two_runners_over_one", [1.5, 1.8, 1.95])
    assert (missed["median"], missed["min"], missed["max"], missed["holds"]) == (1.8, 1.5, 1.95, False)
    assert "unit" not in missed and ratios.summarise("runner_memory_mb", [200.0])["unit"] == "MB"


def test_ratios_that_were_not_measured_again_stay(tmp_path, monkeypatch):
    ratios.write(tmp_path, {"episode_over_pass": {"median": 1}, "share_of_peak": {"median": 2}})
    ratios.write(tmp_path, {"share_of_peak": {"median": 3}})
    here = {"episode_over_pass": {"median": 1}, "share_of_peak": {"median": 3}}
    assert json.loads((tmp_path / ratios.FILE).read_text()) == {ratios.record.kind(): here}
    other = "ARM" if ratios.record.kind() != "ARM" else "Intel with VNNI"
    monkeypatch.setattr(ratios.record, "kind", lambda: other)
    ratios.write(tmp_path, {"share_of_peak": {"median": 4}})
    told = json.loads((tmp_path / ratios.FILE).read_text())
    assert list(told.values()) == [here, {"share_of_peak": {"median": 4}}]


def test_kinds_of_cpu_stand_beside_one_another():
    one = ratios.summarise("share_of_peak", [0.5, 0.7, 0.9])
    first, _, *lines = ratios.table({"AMD with VNNI": {"share_of_peak": one}, "ARM": {}}).splitlines()
    assert first.endswith("| target | CPU AMD with VNNI | CPU ARM |")
    assert len(lines) == 1 and lines[0].endswith("| at least 0.65 | 0.7 (0.5 to 0.9), holds | not measured |")


@pytest.mark.parametrize(
    "vendor, instructions, expected",
    [("AuthenticAMD", ["avx2"], "AMD without VNNI"), ("GenuineIntel", ["avx2", "avx512f"], "Intel without VNNI"),
     ("GenuineIntel", ["avx2", "avx_vnni"], "Intel with VNNI"), ("Hygon", ["avx2", "avx512_vnni"], "other x86 with VNNI")],
)  # fmt: skip
def test_the_kind_of_a_cpu(monkeypatch, vendor, instructions, expected):
    monkeypatch.setattr(record, "machine", lambda: {"vendor": vendor, "instructions": instructions})
    monkeypatch.setattr(record.platform, "machine", lambda: "x86_64")
    assert record.kind() == expected
    monkeypatch.setattr(record.platform, "machine", lambda: "aarch64")
    assert record.kind() == "ARM"


def test_the_time_of_every_node_is_told():
    network, seconds = bench_nodes.timed(workload.problem("squeezenet_compact", 4), 1)
    joined = {node.name for node in network.nodes if isinstance(node, Concatenation)}  # written by their parts
    assert set(seconds) == {node.name for node in network.nodes} - joined
    rows = bench_nodes.told(network, seconds, peak=100.0, bandwidth=10.0)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    row = next(row for row in rows if row["node"] == "blocks.conv1.0")
    weight = network.by_name["blocks.conv1.0"].weight
    assert row["gmac_per_second"] * row["seconds"] * 1e9 == pytest.approx(64 * network.macs["blocks.conv1.0"])
    read = 64 * np.prod(network.input_shape)
    written = 64 * np.prod(network.shapes["blocks.conv1.0"])
    assert row["megabytes"] * 1e6 == pytest.approx(read + written + weight.nbytes)
    assert "blocks.conv1.0" in bench_nodes.table(rows)


def test_seconds_within_an_iteration_are_cut_at_its_ends():
    calls = np.array([[0.0, 1.0], [1.5, 2.5], [2.75, 3.0], [3.5, 9.0]])
    assert trace.seconds_within(calls, 2.0, 4.0) == 0.5 + 0.25 + 0.5
    assert trace.seconds_within(calls[:0], 2.0, 4.0) == 0


def test_an_iteration_ends_with_its_last_episode():
    times = pd.to_datetime([3000, 1000, 2000, 5000], unit="ms", utc=True).astype("datetime64[ms, UTC]")
    rows = pd.DataFrame({"episode": [1, 0, 2, 3], "time": times})
    assert search_job.iteration_ends(rows, 2).tolist() == [3.0, 5.0]


def test_what_stands_in_for_an_evaluator_gives_whole_scores(problem, monkeypatch):
    monkeypatch.setattr(bench_cluster, "SECONDS", 0.0)
    calibration = problem.calibration
    score = Evaluator(problem).evaluate(calibration.quintile)
    environment = env.TapVectorEnv(2, bench_cluster.Sleeper(calibration, score))
    environment.reset()
    for codes in calibration.quintile:
        _, rewards, ended, _, info = environment.step(np.array([codes, codes]))
    assert ended.all() and rewards == pytest.approx([-np.mean(calibration.quintile) / 255] * 2)
    assert info["kd"] == pytest.approx([score.kd] * 2)
