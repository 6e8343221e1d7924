"""A Ray that a command starts, or the cluster that it joins, for as long as it runs."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from approx_env.errors import InputError
from search.storage import Folder

OBJECT_STORE_BYTES = 512 * 2**20
CONNECT_SECONDS = 5


@contextmanager
def session(address: str, cores: int | None = None) -> Iterator[Path]:
    """Connects to the cluster at `address`, or starts a node of its own for 'local', and leaves nothing behind.

    Gives a folder of this machine for temporary files, which goes at the end. `cores` is how many the node claims to
    have, if not those of this machine.

    Raises:
        InputError: no cluster answers there.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}
    temporary = tempfile.mkdtemp(prefix="tapsearch-")
    try:
        if address == "local":
            ray.init(address="local", num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
                     _temp_dir=temporary, **quiet)  # fmt: skip
        else:
            _join(address, quiet)
        yield Path(temporary) / "scratch"
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _join(address: str, quiet: dict) -> None:
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error


def cores() -> int:
    """Cores of the cluster, as it is now."""
    return int(ray.cluster_resources().get("CPU", 0))


def check_shared(folder: Folder, file: str) -> None:
    """Looks whether every node sees `file` in a folder of this machine.

    Raises:
        InputError: naming the nodes that do not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not folder.local or len(nodes) == 1:
        return
    looks = {
        node["NodeID"]: _sees.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(folder.path, file)
        for node in nodes
    }
    blind = [node["NodeManagerHostname"] for node in nodes if not ray.get(looks[node["NodeID"]])]
    if blind:
        raise InputError(
            f"--results {folder} is on this machine alone: {', '.join(blind)} of {len(nodes)} nodes cannot see it, and "
            "what is on one node is lost with it; give a path that all nodes share, or s3://bucket/path"
        )


@ray.remote(num_cpus=0)
def _sees(folder: str, file: str) -> bool:
    return Path(folder, file).exists()
