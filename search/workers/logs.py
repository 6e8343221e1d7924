"""Ray's logs of a run that fails: what its processes wrote before the session's folder goes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from approx_env.errors import InputError
from search.results.folder import Folder

LOGS = "logs"
LONGEST_BYTES = 2**20  # of each file, from its end
PATTERN = "session_*/logs/*.[eo][ru][rt]"  # .err and .out: what a process itself wrote


@contextmanager
def kept(temporary: Path, folder: Folder) -> Iterator[None]:
    """If the block fails, copies what Ray's processes wrote into `folder/logs` and says so.

    Bad input is no failure: its error says all.

    Args:
        temporary: where the session of this machine has its files.
        folder: the run's.
    """
    try:
        yield
    except InputError:
        raise
    except Exception:
        print(_keep(temporary, folder / LOGS), file=sys.stderr, flush=True)
        raise


def _keep(temporary: Path, folder: Folder) -> str:
    found = [path for path in sorted(temporary.glob(PATTERN)) if not path.is_symlink() and path.stat().st_size]
    if not found:
        return "Ray's logs are on its cluster's nodes, in /tmp/ray/session_latest/logs unless they were put elsewhere"
    try:
        with suppress(FileExistsError):
            folder.create()
        for path in found:
            folder.write(path.name, path.read_bytes()[-LONGEST_BYTES:])
    except OSError as error:
        return f"Ray's logs could not be kept in {folder} ({error})"
    return f"Ray's logs are kept in {folder}"
