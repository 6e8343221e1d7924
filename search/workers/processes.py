"""What the processes of a search are started with: cores, environment variables, and a folder for Ray's sockets."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Of a command, before torch and Ray are loaded.
COMMAND = {
    "OMP_NUM_THREADS": "1",  # env runners share the cores
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends our commands, not only Tune
    # Nobody reads Tune's own records. Tune writes those for TensorBoard through a queue. Ctrl-C while something is put
    # there can leave the queue's lock taken. The command would then say "interrupted" and wait for ever.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # no banner: our own line tells the progress
}
# Of a node that a command starts. Ray adds the niceness to that of the command; its default of 15 would leave a
# search what other programs do not want.
NODE = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
# Of a process that draws or learns. torch, MKL and numpy's OpenBLAS choose instructions by the CPU, and each choice
# rounds in its own way; with these a policy, and CMA-ES, have the same bits on every x86 CPU. They count when torch and
# numpy are loaded. MKL's square roots differ even so: what learns takes those of torch's fused Adam.
SAME_BITS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OMP_NUM_THREADS": "1",
}

FOLDER = "tapsearch-"
SOCKET_BYTES = 107 if sys.platform == "linux" else 103  # that the name of a socket may have


@dataclass(frozen=True)
class Needs:
    """What a process that scores asks of Ray."""

    cores: int = 1  # a thread each
    gpus: float = 0  # or a part of one

    def __str__(self) -> str:
        cores = "a core" if self.cores == 1 else f"{self.cores} cores"
        return f"{cores} and {self.gpus:g} GPUs" if self.gpus else cores

    @property
    def bundle(self) -> dict[str, float]:
        """The same as Ray has it."""
        return {"CPU": self.cores, "GPU": self.gpus} if self.gpus else {"CPU": self.cores}


ONE_CORE = Needs()


def prepare() -> None:
    """Sets this process's variables, if they are not set. Commands call it before they load torch and Ray."""
    for name, value in COMMAND.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """What is started in the block gets these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ray_s_kept() -> Iterator[None]:
    """Ray's variables are after the block what they were before it.

    A node that has started in this process leaves RAY_AUTH_MODE behind. A client that has it asks for tokens, and what
    joins a cluster without tokens later is taken for dead there.
    """
    before = _of_ray()
    try:
        yield
    finally:
        for name in _of_ray().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Files that this process and those that it starts make in the block can be read by their owner alone."""
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)


def crowded() -> str | None:
    """A sentence if the name of the folder for temporary files is too long for Ray's sockets."""
    folder = os.fsencode(tempfile.gettempdir())
    longest = f"/{FOLDER}{'x' * 8}/r/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    room = SOCKET_BYTES - len(longest)
    if len(folder) <= room:
        return None
    return (f"TMPDIR must be at most {room} bytes long, because Ray's sockets lie below it, and "
            f"{os.fsdecode(folder)} has {len(folder)}: set a shorter one, as /tmp")  # fmt: skip
