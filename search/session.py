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
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone


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


def room(gpus: float) -> tuple[int, int, int]:
    """What the cluster offers now: its cores, and room for how many processes of a core and `gpus` GPUs each there is
    on all nodes, and on the head.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [_room(node, gpus) for node in nodes]
    at_head = sum(room for node, room in zip(nodes, rooms, strict=True) if HEAD in node)
    return int(sum(node.get("CPU", 0) for node in nodes)), sum(rooms), at_head


def _room(node: dict[str, float], gpus: float) -> int:
    cores, there = int(node.get("CPU", 0)), int(node.get("GPU", 0))
    if not gpus:
        return cores
    # Parts of a GPU lie on one; 1e-9 is for 1 / 0.1 and the like.
    return min(cores, there * int(1 / gpus + 1e-9) if gpus < 1 else int(there / gpus + 1e-9))


def check_shared(folder: Folder, file: str) -> None:
    """Looks whether every node of a cluster sees `file` in a folder of this machine; says so if there is but one node.

    Raises:
        InputError: naming the nodes that do not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not folder.local:
        return
    if len(nodes) == 1:
        print(f"note: {folder.path} is lost with this node, unless hosts share it; only this one could be asked")
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
