"""cluster/README.md, typed line by line on three hosts; and a host that is switched off in the middle of a search.

Each test goes on where the one before it has stopped.
"""

import re
import subprocess
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.cluster import hosts
from tests.cluster.hosts import CLIENT, Hosts
from tests.command import ROOT, copy_checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing())),
]

README = ROOT / "cluster" / "README.md"
JOIN_SECONDS, JOB_SECONDS = 240, 600
EPISODES = 400  # of the search that loses a host


def commands(heading: str) -> list[str]:
    """What a section of the README has people type."""
    section = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def network():
    """Three bare hosts, and the client, where a checkout and its environment are."""
    with Hosts("head", "w1", "w2", CLIENT) as made:
        copy_checkout(made.shared / "checkout")
        made.ssh(CLIENT, "mv /shared/checkout ~/tapsearch")
        made.ssh(CLIENT, f"echo 'export PATH={hosts.SITE}/bin:$PATH RAY_AUTH_MODE=token' >> ~/.bashrc")
        yield made
    left = [f"/run/netns/tap-{name}" for name in made.addresses] + [made.folder, f"/sys/class/net/{hosts.BRIDGE}"]
    assert [place for place in map(Path, left) if place.exists()] == []
    assert str(made.folder) not in Path("/proc/mounts").read_text()


def type_in(network: Hosts, command: str, seconds: float = 120) -> str:
    """What a command prints, typed in the client's cluster/ as the README says."""
    try:
        return network.ssh(CLIENT, f"cd ~/tapsearch/cluster && {command} 2>&1", seconds)
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{command}\n{error.stdout[-4000:]}\n{error.stderr[-2000:]}") from error


def wait_for_nodes(network: Hosts, count: int) -> None:
    (status,) = commands("Start")[-1:]
    end = time.monotonic() + JOIN_SECONDS
    while f"{count} local.cluster.node" not in (told := type_in(network, status).split("Pending:")[0]):
        assert time.monotonic() < end, told
        time.sleep(3)


def test_start(network):
    *lines, status = commands("Start")
    assert "ray status" in status
    for line in lines:
        told = type_in(network, line, 300)
        assert "cluster.check" not in line or "no fault found" in told
    wait_for_nodes(network, 3)
    for host in ("head", "w1", "w2"):
        assert network.ssh(host, "stat -c %a ~/.ray/auth_token; which python").split() == [
            "600", f"{hosts.SITE}/bin/python"
        ]  # fmt: skip


def test_search(network):
    job, report = commands("Search")
    told = type_in(network, job, JOB_SECONDS)
    assert "6 env runners, and the cluster has 6 cores" in told and "succeeded" in told
    rows = pd.read_parquet(network.shared / "results" / "first" / "episodes")
    assert len(rows) == 64 and rows["episode_id"].is_unique
    assert "| squeezenet |" in type_in(network, report)


def submit(name: str, results: str, more: str = "") -> str:
    job, _ = commands("Search")
    job = job.replace("--run-name first", f"--run-name {name} --num-env-runners 3 {more}")
    return job.replace("/shared/results", results)


def test_a_path_of_the_head_alone_is_refused(network):
    with pytest.raises(AssertionError, match="nodes cannot see it"):
        type_in(network, submit("lonely", "/root/results"))
    assert not list(Path(network.folder, "head", "disk").glob("up/root/results/lonely"))


def written(folder: Path) -> int:
    return sum(pq.read_metadata(part).num_rows for part in folder.glob("episodes/part-*.parquet"))


def test_a_host_that_is_switched_off_in_the_middle(network):
    job = submit("rough", "/shared/results", f"--episodes {EPISODES} --search-images 256 --top 3")
    type_in(network, job.replace("ray job submit", "ray job submit --no-wait --submission-id rough"), 120)
    folder = network.shared / "results" / "rough"
    end = time.monotonic() + JOB_SECONDS
    while written(folder) < 4:
        assert time.monotonic() < end, type_in(network, "ray exec cluster.yaml 'ray job logs rough'")
        time.sleep(0.2)
    of_ray = network.ssh("w2", "ps -e -o ni= -o args= | grep -E ' [r]ay::|[/]raylet '").splitlines()
    assert len(of_ray) > 1 and len({line.split()[0] for line in of_ray}) == 1  # workers are as nice as what starts them
    network.kill("w1")
    killed = written(folder)
    while written(folder) < killed + 16:  # it goes on without the host
        assert time.monotonic() < end, type_in(network, "ray exec cluster.yaml 'ray job logs rough'")
        time.sleep(0.2)
    network.boot("w1")
    while not (folder / "best.json").exists():
        assert time.monotonic() < end, type_in(network, "ray exec cluster.yaml 'ray job logs rough'")
        time.sleep(1)
    rows = pd.read_parquet(folder / "episodes")
    assert len(rows) == EPISODES and sorted(rows["episode"]) == list(range(EPISODES))
    assert (
        list(pd.read_parquet(folder / "top.parquet")["return"])
        == sorted(rows.drop_duplicates([name for name in rows if name[-3:] in ("_t1", "_v1", "_t2", "_v2")])["return"])[
            :-4:-1
        ]
    )


def test_the_host_has_joined_again(network):
    wait_for_nodes(network, 3)


def test_stop(network):
    for line in commands("Stop"):
        type_in(network, line)
    for host in ("head", "w1", "w2"):
        assert "ray" not in network.ssh(host, "ps -e -o comm= | grep -E 'raylet|gcs_server' || true")
