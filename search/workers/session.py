"""A Ray that a command starts, or the cluster that it joins, for as long as it runs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray  # before psutil, which it brings

import psutil  # isort: skip
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from approx_env.errors import ENDING, Failure, InputError, postponed
from search.results.folder import Folder
from search.workers import processes
from search.workers.processes import Needs

if TYPE_CHECKING:
    from approx_env.scoring.calibration import Calibration
    from approx_env.scoring.evaluator import Problem  # brings torch, which the sink does without

OBJECT_STORE_BYTES = 512 * 2**20
CONNECT_SECONDS = 5
WATCH_SECONDS = 0.05
QUIET = {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}
NEEDED = {"raylet": "raylet", "gcs_server": "control service (GCS)"}  # Ray's processes, and what to call them
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone


@contextmanager
def session(address: str, cores: int | None = None, same_bits: bool = True) -> Iterator[Path]:
    """Connects to the cluster at `address`, or starts a node of its own for 'local', and leaves nothing behind.

    A node of its own listens on loopback alone, and nobody else can reach its files. Gives a folder of this machine
    for temporary files, which goes at the end.

    Args:
        cores: how many the node claims to have, if not those of this machine.
        same_bits: whether torch rounds in the same way on every CPU; it is slower then, where much is computed.

    Raises:
        InputError: no cluster answers there.
        Failure: a node of its own does not start, or a process of Ray's has died; its logs are kept.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    variables = processes.SAME_BITS if same_bits else {}
    # Nobody else may enter it. Ray opens the folders that it makes to all, so they lie one further down.
    temporary = Path(tempfile.mkdtemp(prefix=processes.FOLDER))
    watch = None
    try:
        if address == "local":
            with processes.private(), processes.ray_s_kept():
                with postponed():  # Ray cannot end half a node
                    watch = _start(temporary, cores, processes.NODE | variables)
                yield temporary / "scratch"
        else:
            _join(address, variables)
            yield temporary / "scratch"
    except BaseException as error:
        if watch and (dead := watch.noticed if isinstance(error, KeyboardInterrupt) else watch.dead()):
            watch.kill()
            raise Failure(
                f"Ray's {dead} has died, and the work with it: see whether memory ran out, and Ray's logs in "
                f"{_keep_logs(temporary)}; start the command again, a search with --resume RUN"
            ) from None
        if watch and isinstance(error, Exception) and not isinstance(error, InputError | BrokenPipeError):
            print(f"Ray's logs are kept in {_keep_logs(temporary)}", file=sys.stderr)
        raise
    finally:
        with postponed():
            if watch:
                watch.stop()
            ray.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)
            if watch:
                watch.unmute()


def _start(temporary: Path, cores: int | None, variables: dict[str, str]) -> _Watch:
    """Starts a node of this command's own below `temporary`."""
    folder = temporary / "r"
    folder.mkdir()
    enabled, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # so Ray's address is loopback
    try:
        with processes.inherited(variables), _own_signals():
            ray.init(address="local", num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
                     _temp_dir=str(folder), **QUIET)  # fmt: skip
    except Exception as error:  # Ray's are of many kinds; on a machine with too much to do it takes too long
        raise Failure(f"Ray has not started ({error}): see that memory and processors are free, and start the command "
                      "again") from error  # fmt: skip
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
    return _Watch()


@contextmanager
def _own_signals() -> Iterator[None]:
    """SIGTERM waits in the block, and is ours again after it.

    Ray takes it there, first in Python and then in C++, and would end this process by it without cleaning up.
    """
    handlers = {number: signal.getsignal(number) for number in ENDING}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if callable(handler):
                    signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# Ray ends by SIGTERM what it starts, even while this process does not hear it.
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]))


class _Watch(threading.Thread):
    """Ends this command when a process dies without which the node is none; Ray itself would wait for a minute."""

    def __init__(self):
        super().__init__(daemon=True)
        started = ray._private.worker._global_node.all_processes
        self._processes = {name: started[name][0].process for name in NEEDED}
        self._stopped = threading.Event()
        self._stderr: int | None = None  # a copy of file 2, while that leads nowhere
        self.noticed: str | None = None  # what has died, if this command is ended for it
        self.start()

    def dead(self) -> str | None:
        """The name of a process that has died."""
        return next((NEEDED[name] for name, process in self._processes.items() if process.poll() is not None), None)

    def run(self) -> None:
        while not self._stopped.wait(WATCH_SECONDS):
            self.noticed = self.dead()
            if self.noticed:
                self.mute()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def kill(self) -> None:
        """Ends the raylet and what it has started: without the rest of the node they do not end by themselves."""
        with suppress(psutil.Error):
            raylet = psutil.Process(self._processes["raylet"].pid)
            for process in (*raylet.children(recursive=True), raylet):
                with suppress(psutil.Error):
                    process.kill()

    def mute(self) -> None:
        """Lets nobody write to stderr: Ray's client would say every second that a task cannot be told of."""
        self._stderr = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def unmute(self) -> None:
        """Gives stderr back, if it was muted."""
        if self._stderr is not None:
            os.dup2(self._stderr, 2)
            os.close(self._stderr)

    def stop(self) -> None:
        """Looks no longer."""
        self._stopped.set()
        self.join()


def _keep_logs(temporary: Path) -> Path:
    """Moves Ray's logs to where they stay."""
    kept = Path(tempfile.mkdtemp(prefix="ray-logs-"))
    for logs in temporary.glob("r/session_2*/logs"):
        shutil.move(logs, kept)
    return kept


def _join(address: str, variables: dict[str, str]) -> None:
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        with _own_signals():
            ray.init(address=address, runtime_env={"env_vars": variables}, **QUIET)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error


def room(needs: Needs) -> tuple[int, int, int]:
    """What the cluster offers now: its cores, and room for how many processes with these needs there is on all nodes,
    and on the head.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [_room(node, needs) for node in nodes]
    at_head = sum(room for node, room in zip(nodes, rooms, strict=True) if HEAD in node)
    return int(sum(node.get("CPU", 0) for node in nodes)), sum(rooms), at_head


def _room(node: dict[str, float], needs: Needs) -> int:
    places, there, gpus = int(node.get("CPU", 0)) // needs.cores, int(node.get("GPU", 0)), needs.gpus
    if not gpus:
        return places
    # Parts of a GPU lie on one; 1e-9 is for 1 / 0.1 and the like.
    return min(places, there * int(1 / gpus + 1e-9) if gpus < 1 else int(there / gpus + 1e-9))


def share(problem: Problem) -> bytes:
    """Puts a problem into Ray's object store, and its calibration besides, to stay there as long as this process lives.

    References travel as bytes: an actor that starts later may not depend on an argument that Ray could release.
    """
    return ray.cloudpickle.dumps((ray.put(problem), ray.put(problem.calibration)))


def fetch(shared: bytes) -> Problem:
    """The problem, whose arrays lie in the node's object store."""
    return _fetched(shared, 0)


def fetch_calibration(shared: bytes) -> Calibration:
    """The calibration alone: a process that scores nothing does without torch, which the problem brings."""
    return _fetched(shared, 1)


def _fetched(shared: bytes, place: int) -> Any:
    return ray.get(ray.cloudpickle.loads(shared)[place])


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
