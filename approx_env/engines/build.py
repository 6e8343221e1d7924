"""Which engines there are."""

from __future__ import annotations

from collections.abc import Sequence

from approx_env.engines.base import Engine
from approx_env.engines.portable import PortableEngine
from approx_env.engines.vector.engine import VectorEngine
from approx_env.errors import InputError
from approx_env.int8 import cost
from approx_env.int8.network import Network

ENGINES = ("vector", "portable")


def build(network: Network, engine: str = "vector", device: str = "cpu", readers: Sequence[cost.Reader] = ()) -> Engine:
    """Makes a network ready to run.

    Args:
        engine: 'vector', the fast one for x86 CPUs, or 'portable', for any device.
        device: of the portable engine, as torch names it.

    Raises:
        InputError: the engine cannot run here.
    """
    if engine == "portable":
        return PortableEngine(network, readers, device=device)
    if device != "cpu":
        raise InputError(f"--engine vector runs on the cpu, and --device {device} came: use --engine portable")
    return VectorEngine(network, readers)
