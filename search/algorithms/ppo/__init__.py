"""PPO, by RLlib: a policy learns to draw configurations. RLlib is imported when a search is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from approx_env.scoring.calibration import Calibration


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    lr: float = 1e-3  # Adam's learning rate
    iteration_episodes: int = 16  # episodes that PPO learns from at a time; no more runners than these have work
    envs_per_runner: int = 1  # configurations that a runner takes through the network in lockstep


def trial(calibration: Calibration, options: Options, **where: Any) -> tuple[type, Any]:
    """The Tune trainable of a search, and RLlib's configuration of it; `where` as `learner.configure` takes it."""
    from search.algorithms.ppo import learner

    return learner.TapPPO, learner.configure(calibration, options, **where)
