"""Who writes a run: one driver at a time, which says so every few seconds in the run's folder.

A driver that was killed stops saying so. Another one may then go on with the run: at once, if the dead one was a
process of the same machine, else when its last word is old enough.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass

from approx_env.errors import InputError
from search.results import store
from search.results.folder import Folder

FILE = "lease.json"
BOOT, NAMESPACE = "/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"  # Linux alone has them
EXPIRES_SECONDS = 30.0  # three missed beats; see sink.FLUSH_SECONDS
SETTLE_SECONDS = 1.0
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Owner:
    """A driver."""

    token: str
    machine: str  # boot and process namespace, within which `process` means something
    host: str
    process: int


def me() -> Owner:
    """This process, as a driver of its own."""
    return Owner(uuid.uuid4().hex, _machine(), socket.gethostname(), os.getpid())


def _machine() -> str:
    """What tells this machine from others, and from itself before it was started anew.

    Where there is no `/proc`, host name and network card stand in, which outlive a restart. The number of a driver
    that died may then be another process's now. It counts as alive, and its lease is waited for as one from elsewhere.
    """
    try:
        with open(BOOT) as boot:
            return f"{boot.read().strip()} {os.readlink(NAMESPACE)}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def beat(folder: Folder, owner: Owner) -> None:
    """Says that `owner` still writes the run."""
    folder.write_json(FILE, asdict(owner) | {"time": time.time()})


def renew(folder: Folder, owner: Owner) -> bool:
    """Says that `owner` still writes the run, unless another one does; returns whether one does."""
    if lost(folder, owner):
        return True
    beat(folder, owner)
    return False


def lost(folder: Folder, owner: Owner) -> bool:
    """Whether another driver has taken the run over, and perhaps ended and given it back since."""
    found = _read(folder)
    if found is None:
        if not folder.exists(store.RUN):
            return False  # the storage is away
        found = _read(folder)  # it may just have come back
    return found is None or found["token"] != owner.token


def take(folder: Folder, *, fresh: bool = False) -> Owner:
    """Makes this process the run's driver; waits until one that may be dead has been silent for long enough.

    Args:
        fresh: whether this process has just made the folder.

    Raises:
        InputError: another driver is at work.
    """
    owner, seen, since = me(), None, time.monotonic()
    while (found := _read(folder)) and not _dead(found, owner.machine):
        if seen is None:
            print(f"{folder} was last written by process {found['process']} on {found['host']}: waiting "
                  f"{EXPIRES_SECONDS:.0f} s for a sign of it", flush=True)  # fmt: skip
        if seen not in (None, found):
            raise InputError(
                f"{folder} is being written by process {found['process']} on {found['host']}: wait for its end, or "
                "choose another --run-name"
            )
        if time.monotonic() - since > EXPIRES_SECONDS:
            break
        seen = found
        time.sleep(POLL_SECONDS)
    beat(folder, owner)
    if not (fresh and folder.local):  # somebody else may just have done the same
        time.sleep(SETTLE_SECONDS)
        if lost(folder, owner):
            raise InputError(f"another process has just gone on with {folder}: leave it to that one")
    return owner


def release(folder: Folder, owner: Owner) -> None:
    """Says that nobody writes the run any more. If that cannot be said, another driver waits for the lease's expiry."""
    with suppress(OSError, InputError):
        if (found := _read(folder)) and found["token"] == owner.token:
            folder.remove(FILE)


def held(folder: Folder) -> bool:
    """Whether a driver writes the run, as far as can be told from here.

    Raises:
        InputError: the lease is damaged.
    """
    found = _read(folder)
    return found is not None and not _dead(found, _machine()) and time.time() - found["time"] < EXPIRES_SECONDS


class Heart:
    """Keeps a driver's lease alive, until another one has taken the run.

    Args:
        owner: None: there is no lease, and nothing is ever lost.
    """

    def __init__(self, folder: Folder, owner: Owner | None):
        self._folder, self._owner = folder, owner
        self.lost = False  # once another driver has the run, for good

    def beat(self) -> None:
        """Says that the driver is alive, unless the run is lost."""
        if self._owner and not self.lost and renew(self._folder, self._owner):
            self.lost = True

    def check(self) -> None:
        """Looks whether the run is lost."""
        if self._owner and not self.lost and lost(self._folder, self._owner):
            self.lost = True


def _read(folder: Folder) -> dict | None:
    try:
        found = folder.read_json(FILE)
        kept = {name: found[name] for name in (*Owner.__dataclass_fields__, "time")}
        texts = all(isinstance(kept[name], str) for name in ("token", "machine", "host"))
        numbers = type(kept["process"]) is int and type(kept["time"]) in (int, float)
        if not (texts and numbers and 0 < kept["process"] < 2**31):  # 0 and below are groups of processes
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}/{FILE} is damaged: remove it if no driver writes the run") from error
    return kept


def _dead(found: dict, machine: str) -> bool:
    """Whether a driver of this machine is known to have ended."""
    if found["machine"] != machine:
        return False
    try:
        os.kill(found["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and is another person's
        return False
    return False
