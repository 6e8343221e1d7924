"""Things that fail under a real search: every finished row is there once, the top is right, and the job ends.

A search says the same however often it was disturbed: its rows are those of one that ran undisturbed.
"""

import contextlib
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from search import run as search_run
from search.results import store
from tests.command import LONGEST_SECONDS, Command, Run, node

TOP = 5
PROBLEM = f"--layers squeezenet_compact --top {TOP} "
PPO = PROBLEM + "--algorithm ppo --search-images 64 --episodes 160 --iteration-episodes 16 --num-env-runners 2"
RANDOM = PROBLEM + "--search-images 256 --episodes 120 --num-env-runners 2 --algorithm random"
QUICK = PROBLEM + "--algorithm ppo --search-images 16 --episodes 40 --num-env-runners 0"


def finished(running: Command, arguments: str, *, status: int = 0) -> pd.DataFrame:
    """The rows of a run that has ended, which must be whole, and its top right."""
    ended = running.finish()
    assert ended.status == status, ended.output + ended.errors
    assert "Traceback" not in ended.output + ended.errors
    whole(ended.folder, arguments)
    return rows_of(ended)


@functools.cache
def undisturbed(arguments: str) -> pd.DataFrame:
    """The rows of a search that nothing happens to. How many processes score changes none."""
    return finished(Command(*arguments.split(), "--num-env-runners", "0", "--address", node()), arguments)


def rows_of(ended: Run) -> pd.DataFrame:
    return ended.rows.drop(columns="time")


def whole(folder: Path, arguments: str) -> None:
    """Every row is there once, and the top is made of the best."""
    episodes = int(arguments.split("--episodes ")[1].split()[0])
    rows = pd.read_parquet(folder / store.EPISODES)
    assert len(rows) == episodes and rows["episode_id"].is_unique
    assert sorted(rows["episode"]) == list(range(episodes))
    codes = [name for name in rows if name.endswith(("_t1", "_v1", "_t2", "_v2")) and "mac" not in name]
    best = rows.drop_duplicates(codes).nlargest(TOP, "return")["return"]
    assert list(pd.read_parquet(folder / store.TOP)["return"]) == list(best)
    assert (folder / "best.json").exists()
    assert list(folder.rglob("*.tmp")) == []


def test_processes_of_ppo_that_are_killed():
    """An env runner in the middle of an episode, the sink, and the search itself: the fault test that is not slow."""
    running = Command(*PPO.split())
    for victim in ("ray::SearchEnvRunner", "ray::_Sink", "ray::TapPPO"):
        running.wait_for_rows(running.written() + 1)
        running.kill(victim)
    assert finished(running, PPO).equals(undisturbed(PPO))
    assert "its process died; it goes on from what is stored" in (running.told.output)


@pytest.mark.slow
def test_processes_of_a_baseline_that_are_killed():
    """A scoring process, the search itself, and a scoring process of the validation."""
    running = Command(*RANDOM.split())
    for victim in ("ray::Runner", "ray::AskTellSearch"):
        running.wait_for_rows(running.written() + 1)
        running.kill(victim)
    running.wait_until(lambda: "validation images" in running.output)
    running.kill("ray::Runner")
    assert finished(running, RANDOM).equals(undisturbed(RANDOM))


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_in_another_process():
    """And with another number of processes. (PPO's is killed in test_s3.)"""
    running = Command(*RANDOM.split())
    running.wait_for_rows(2)
    running.process.kill()
    running.finish()
    before = set((running.folder / store.EPISODES).iterdir())
    assert 0 < len(pd.read_parquet(running.folder / store.EPISODES)) < 120
    resumed = Command("--resume", "r", "--num-env-runners", "1", results=running.folder.parent)
    assert finished(resumed, RANDOM).equals(undisturbed(RANDOM))
    assert before < set((running.folder / store.EPISODES).iterdir())
    told = running.told.json("run.json")
    assert len(told["resumed"]) == 1 and told["arguments"]["num_env_runners"] == 2


@pytest.mark.slow
def test_a_driver_that_was_interrupted_goes_on_in_the_same_process(tmp_path, monkeypatch, capsys):
    from search.stages import validation

    def interrupt(*arguments):
        raise KeyboardInterrupt

    place = ["--results", str(tmp_path), "--address", node()]  # Ray keeps a local node's tokens until a process ends
    with monkeypatch.context() as patch:
        patch.setattr(validation, "finish", interrupt)
        assert search_run.main([*QUICK.split(), *place, "--run-name", "r"]) == 130
    assert search_run.main(["--resume", "r", *place, "--num-env-runners", "0"]) == 0
    whole(tmp_path / "r", QUICK)
    before = pd.read_parquet(tmp_path / "r" / store.EPISODES).drop(columns="time")
    capsys.readouterr()
    assert search_run.main(["--resume", "r", *place]) == 0
    assert "r is finished" in capsys.readouterr().out
    # Rows that were lost are searched again.
    (tmp_path / "r" / "best.json").unlink()
    next((tmp_path / "r" / store.EPISODES).iterdir()).unlink()
    assert search_run.main(["--resume", "r", *place, "--num-env-runners", "0"]) == 0
    whole(tmp_path / "r", QUICK)
    after = pd.read_parquet(tmp_path / "r" / store.EPISODES).drop(columns="time")
    one, other = (rows.sort_values("episode", ignore_index=True) for rows in (before, after))
    assert one.equals(other)


@pytest.mark.slow
def test_two_drivers_on_one_run():
    """The second is refused, whether it begins the run anew or goes on with it; the first ends as if alone."""
    first = Command(*RANDOM.split())
    first.wait_for_rows()
    with first.held():
        resumed = Command("--resume", "r", results=first.folder.parent).finish()
        again = Command(*RANDOM.split(), results=first.folder.parent).finish()
    assert finished(first, RANDOM).equals(undisturbed(RANDOM))
    assert (again.status, resumed.status) == (2, 2)
    assert "r exists: choose another --run-name" in again.errors
    assert "is being written by process" in resumed.errors


@pytest.mark.slow
def test_storage_that_fails_for_a_while():
    running = Command(*PPO.split())
    running.wait_for_rows(2)
    away = running.folder.with_name("away")
    with running.held():
        running.folder.rename(away)
    running.wait_until(lambda: "results cannot be written" in running.output)
    away.rename(running.folder)
    assert finished(running, PPO).equals(undisturbed(PPO))


@pytest.fixture
def small_disk():
    """A disk of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = Path(tempfile.mkdtemp(prefix="t"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tapsearch", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.mark.slow
def test_a_full_disk(small_disk):
    running = Command(*PPO.split(), results=small_disk)
    running.wait_for_rows(1)
    with running.held(), contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    running.wait_until(lambda: "No space left" in running.output)
    (small_disk / "ballast").unlink()
    assert finished(running, PPO).equals(undisturbed(PPO))


# -- several nodes, on this machine


@pytest.fixture
def cluster(monkeypatch):
    """A head and one more node, with a core each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
    made.add_node(num_cpus=1, object_store_memory=2**27)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def worker(made: Cluster):
    (node,) = made.worker_nodes
    return node


@pytest.mark.slow
def test_a_node_that_dies_and_comes_back(cluster):
    """Env runners are spread over the nodes, so that one is lost; the other does its work."""
    running = Command(*PPO.split(), "--address", cluster.address)
    running.wait_for_rows(2)
    with running.held():
        actors = list_actors(address=cluster.address, filters=[("state", "=", "ALIVE")], detail=True)
        assert len({actor.node_id for actor in actors if actor.class_name == "SearchEnvRunner"}) == 2
        cluster.remove_node(worker(cluster), allow_graceful=False)
        written = running.written()
    running.wait_for_rows(written + 16 + 1)  # a whole iteration without the node
    with running.held():
        cluster.add_node(num_cpus=1, object_store_memory=2**27)
    assert finished(running, PPO).equals(undisturbed(PPO))


@pytest.mark.slow
def test_the_head_dies(cluster):
    running = Command(*PPO.split(), "--address", cluster.address)
    running.wait_for_rows(2)
    with running.held():
        cluster.remove_node(cluster.head_node, allow_graceful=False)
    running.process.wait(LONGEST_SECONDS)
    running.finish()
    resumed = Command("--resume", "r", "--num-env-runners", "2", results=running.folder.parent)
    assert finished(resumed, PPO).equals(undisturbed(PPO))
