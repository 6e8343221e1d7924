"""What Ray itself puts into a worker process: an actor with RLlib and torch imported, and nothing of ours."""

from __future__ import annotations

import os

import ray


@ray.remote(num_cpus=0)
class BareActor:
    """Imports what every env runner of RLlib imports."""

    def __init__(self):
        import ray.rllib.algorithms.ppo  # noqa: F401
        import torch  # noqa: F401

    def process(self) -> int:
        """Id of this process."""
        return os.getpid()
