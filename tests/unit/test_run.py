"""How a search is fitted to the cluster that it finds, and what is left of it when it fails."""

import os
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray

from approx_env.errors import Failure, InputError
from approx_env.scoring import calibration
from search import job, run
from search.config import Settings
from search.results import lease, ledger, store
from search.results.folder import Folder
from search.workers import session
from tests.calibrated import calibrated

GPU = {"engine": "portable", "device": "cuda"}
NODES = {
    "head": {session.HEAD: 1.0},
    "with GPUs": {"CPU": 8.0, "GPU": 3.0},
    "without": {"CPU": 16.0},
    "gone": {"CPU": 64.0, "GPU": 8.0},
}
CALIBRATION = calibrated(35, 35)


def nodes(monkeypatch, *names: str) -> None:
    told = [{"Alive": name != "gone", "Resources": NODES[name]} for name in names]
    monkeypatch.setattr(session.ray, "nodes", lambda: told)


@pytest.mark.parametrize(
    ("options", "runners", "room"),
    [
        ({}, 24, 24),
        ({"num_env_runners": 5}, 5, 24),
        ({"num_env_runners": 25}, 25, 24),
        ({"threads_per_runner": 5}, 4, 4),
        (GPU, 3, 3),
        (GPU | {"gpus_per_runner": 0.5}, 6, 6),
        (GPU | {"gpus_per_runner": 0.4}, 6, 6),
        (GPU | {"gpus_per_runner": 0.1}, 8, 8),
        (GPU | {"gpus_per_runner": 2.0}, 1, 1),
        (GPU | {"gpus_per_runner": 4.0}, 1, 0),
        (GPU | {"gpus_per_runner": 0.0}, 24, 24),
    ],
)
def test_a_cluster_gets_as_many_runners_as_it_has_room_for(monkeypatch, options, runners, room, capsys):
    nodes(monkeypatch, *NODES)
    settings = Settings(address="auto", algorithm="random", **options)
    assert run._on_cluster(settings, CALIBRATION).runners == runners
    said = capsys.readouterr().out
    assert said.startswith(f"{runners} env runners, and the cluster has 24 cores\n")
    assert (f"there is room for {room}: the search starts when" in said) == (runners > room)


@pytest.mark.parametrize(
    ("options", "busy"),
    [
        ({"algorithm": "hill"}, 8),
        ({"algorithm": "auto"}, 10),  # CMA-ES over two layers: 4 + 3 ln 8
        ({"algorithm": "ppo", "iteration_episodes": 9, "envs_per_runner": 2}, 5),
        ({"algorithm": "reconstruction"}, None),
    ],
)
def test_a_cluster_s_search_takes_no_more_runners_than_it_keeps_busy(monkeypatch, options, busy, capsys):
    nodes(monkeypatch, *NODES)
    assert run._on_cluster(Settings(address="auto", **options), CALIBRATION).runners == (busy or 24)
    assert "no work" not in capsys.readouterr().out
    asked = Settings(address="auto", num_env_runners=20, **options)
    assert run._on_cluster(asked, CALIBRATION).runners == 20
    idle = f"configurations at a time, so that {20 - (busy or 20)} env runners of each search have no work"
    assert (idle in capsys.readouterr().out) == bool(busy)


def test_nobody_waits_for_what_this_machine_will_never_have(monkeypatch):
    nodes(monkeypatch, "without")
    assert 1 <= run._on_cluster(Settings(), CALIBRATION).runners <= 16
    with pytest.raises(InputError, match="want a core and 1 GPUs each, and this machine has room for 0"):
        run._on_cluster(Settings(**GPU), CALIBRATION)


def test_a_ray_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(session.ray, "init", Mock(side_effect=Exception("The current node timed out during startup")))
    told = r"Ray has not started \(The current node timed out.*start the command again"
    with pytest.raises(Failure, match=told), session.session("local"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_head_without_cores_cannot_score(monkeypatch):
    nodes(monkeypatch, *NODES)
    with pytest.raises(InputError, match="--num-env-runners 0 works on the cluster's head"):
        run._on_cluster(Settings(address="auto", num_env_runners=0), CALIBRATION)


def job_in(folder: Folder, monkeypatch, earlier: dict | None = None) -> SimpleNamespace:
    monkeypatch.setattr(job, "describe", lambda job: {"run": "r"})
    problem = SimpleNamespace(calibration=calibration.uncounted({"conv1": 35}))
    settings = Settings(results="x", search_images=32)
    return SimpleNamespace(folder=folder, earlier=earlier, settings=settings, problem=problem)


def test_a_run_keeps_the_histograms_that_it_was_calibrated_by(tmp_path, monkeypatch):
    made = job_in(Folder(tmp_path / "r"), monkeypatch)
    made.problem.calibration.layers[0].histogram[7] = 3
    with run.claimed(made):
        kept = store.read_table(made.folder, store.HISTOGRAMS).to_pandas()
    assert list(kept["code"]) == list(range(256))
    assert kept[kept["count"] > 0].to_dict("records") == [{"layer": "conv1", "code": 7, "count": 3}]


def fail_in_a_run(made: SimpleNamespace, rows: bool) -> None:
    with pytest.raises(InputError, match="out of memory"), run.claimed(made):
        if rows:
            (made.folder / store.EPISODES).write("part-1.parquet", b"rows")
        raise InputError("the GPU is out of memory")


def test_bad_input_that_shows_late_costs_no_rows(tmp_path, monkeypatch):
    made = job_in(Folder(tmp_path / "r"), monkeypatch)
    fail_in_a_run(made, rows=True)
    assert (made.folder / store.EPISODES).read("part-1.parquet") == b"rows"
    assert made.folder.names() == [store.HISTOGRAMS, store.RUN]  # and nobody holds the lease


def test_bad_input_leaves_no_folder_without_rows(tmp_path, monkeypatch):
    fail_in_a_run(job_in(Folder(tmp_path / "r"), monkeypatch), rows=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_went_on_keeps_its_folder(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "r")
    (folder / store.EPISODES).create()
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    fail_in_a_run(job_in(folder, monkeypatch, earlier={"run": "r"}), rows=False)
    assert folder.exists(store.RUN)


def test_a_folder_that_cannot_be_listed_is_kept(tmp_path, monkeypatch):
    made = job_in(Folder(tmp_path / "r"), monkeypatch)
    monkeypatch.setattr(store, "part_names", lambda folder: (_ for _ in ()).throw(OSError("away")))
    fail_in_a_run(made, rows=True)
    assert (made.folder / store.EPISODES).exists("part-1.parquet")


def test_a_run_that_is_ended_while_it_is_described_leaves_no_lease(tmp_path, monkeypatch):
    made = job_in(Folder(tmp_path / "r"), monkeypatch)
    monkeypatch.setattr(job, "describe", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), run.claimed(made):
        raise AssertionError
    assert made.folder.names() == []


@pytest.mark.parametrize("damage", ["mkdir", "touch"])
def test_a_lease_that_is_none_ends_the_run_before_it_begins(tmp_path, monkeypatch, damage):
    made = job_in(Folder(tmp_path), monkeypatch, earlier={"run": "r"})
    getattr(tmp_path / lease.FILE, damage)()
    with pytest.raises(InputError, match="lease.json"), run.claimed(made):
        raise AssertionError
    assert (tmp_path / lease.FILE).exists()


class Answers:
    """A sink whose methods answer, or fail, at once."""

    def __init__(self, **answers):
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=lambda answer=answer: answer))


def test_how_many_are_kept_is_told_by_the_sink(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    info = ledger.RunInfo("r", "m", "d", ("a",), (35,), 32)
    progress = replace(ledger.Ledger(info, 1).progress("OSError: full"), configurations=7, waiting=2, layer_forwards=5)
    run._tell_count(Answers(flush=False, progress=progress), job_in(Folder(tmp_path), monkeypatch))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "2 finished configurations could not be written (OSError: full)"
    assert second == f"7 configurations scored (5 layer-forwards), all kept in {tmp_path}/episodes"


def test_what_came_after_the_end_is_no_trouble(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    progress = replace(ledger.Ledger(ledger.RunInfo("r", "m", "d", ("a",), (35,), 32), 1).progress(), waiting=2)
    run._tell_count(Answers(flush=False, progress=progress), job_in(Folder(tmp_path), monkeypatch))
    assert capsys.readouterr().out == f"0 configurations scored (0 layer-forwards), all kept in {tmp_path}/episodes\n"


def test_without_the_sink_the_folder_tells(tmp_path, monkeypatch, capsys):
    def dead(answer, timeout):
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(ray, "get", dead)
    handle, made = Answers(flush=None, progress=None), job_in(Folder(tmp_path), monkeypatch)
    rows = [{"search_images": 32}, {"search_images": 64}]
    monkeypatch.setattr(store, "read_rows", lambda folder: rows)
    run._tell_count(handle, made)
    assert capsys.readouterr().out == f"1 configurations scored, all kept in {tmp_path}/episodes\n"
    monkeypatch.setattr(store, "read_rows", lambda folder: (_ for _ in ()).throw(OSError("away")))
    run._tell_count(handle, made)
    assert capsys.readouterr().out == f"{tmp_path}/episodes cannot be read (away)\n"


def test_stderr_leads_nowhere_while_it_is_muted(capfd):
    """Ray's client writes to the file, not to `sys.stderr`."""
    watch = session._Watch.__new__(session._Watch)
    watch._stderr = None
    watch.unmute()
    os.write(2, b"one ")
    watch.mute()
    os.write(2, b"two ")
    watch.unmute()
    os.write(2, b"three")
    assert capfd.readouterr().err == "one three"
