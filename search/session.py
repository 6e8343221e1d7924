"""A Ray that a command starts, or the cluster that it joins, for as long as it runs."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from approx_env.errors import InputError

OBJECT_STORE_BYTES = 512 * 2**20
CONNECT_SECONDS = 5


@contextmanager
def session(address: str) -> Iterator[None]:
    """Connects to the cluster at `address`, or starts a node of its own for 'local', and leaves nothing behind.

    Raises:
        InputError: no cluster answers there.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}
    temporary = tempfile.mkdtemp(prefix="tapsearch-") if address == "local" else None
    try:
        if temporary:
            ray.init(address="local", object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
                     _temp_dir=temporary, **quiet)  # fmt: skip
        else:
            _join(address, quiet)
        yield
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _join(address: str, quiet: dict) -> None:
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error
