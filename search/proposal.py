"""A policy that proposes codes for a network that it has never seen, from four numbers of each layer.

It reads what `TAP-v0` observes of a layer: depth, mean, standard deviation and p90 of its codes. The last three are
taken as shares of the layer's tmax, as codes are. A linear map and a softmax turn them into five gaps that sum to 1.
The codes are where the gaps end, as shares of tmax: so they are always in order. A policy that has learnt nothing
proposes quintile. `search.pretrain` trains it over many problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from approx_env import tap
from approx_env.errors import InputError
from approx_env.scoring import elementary
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from search import codes
from search.results.folder import Folder

OBSERVED, GAPS = 4, len(tap.CODES) + 1
SLACK = 1e-9  # so that a fifth of 35 is 7, however it was computed


class Policy(nn.Module):
    """Observations of layers `(..., 4)` -> logits of the gaps `(..., 5)`, in float64: it rounds alike everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps = nn.Linear(OBSERVED, GAPS, dtype=torch.float64)
        nn.init.zeros_(self.gaps.weight)
        nn.init.zeros_(self.gaps.bias)

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        return self.gaps(observed)

    def propose(self, calibration: Calibration) -> Configuration:
        """The codes that it takes for the best, for each layer; where tmax is searched, with the calibrated one."""
        with torch.no_grad():
            return configuration(self(observed(calibration)).numpy(), calibration)


def observed(calibration: Calibration) -> torch.Tensor:
    """Depth, and mean, standard deviation and p90 as shares of tmax, of each layer: `(layers, 4) float64`."""
    units = np.array([[1.0, 255 / layer.tmax, 128 / layer.tmax, 255 / layer.tmax] for layer in calibration.layers])
    return torch.from_numpy(units * np.array([layer.observation for layer in calibration.layers], np.float64))


def configuration(logits: np.ndarray, calibration: Calibration) -> Configuration:
    """The codes of the gaps `(layers, 5)`, rounded down, at least one code apart from each other."""
    gaps = elementary.exp(logits - logits.max(-1, keepdims=True))
    ends = np.cumsum(gaps, -1)[:, :-1] / gaps.sum(-1, keepdims=True)
    found = [_codes(shares, layer.tmax) for shares, layer in zip(ends, calibration.layers, strict=True)]
    count = len(calibration.names)
    return tuple((*codes, layer.tmax)[:count] for codes, layer in zip(found, calibration.layers, strict=True))


def _codes(shares: Sequence[float], tmax: int) -> tuple[int, ...]:
    found: list[int] = []
    for place, share in enumerate(shares):
        lowest = found[-1] + 1 if found else 1
        highest = tmax - (len(tap.CODES) - 1 - place)  # leaves room for those that follow
        found.append(min(max(int(share * tmax + SLACK), lowest), highest))
    return tuple(found)


def save(policy: Policy) -> bytes:
    """A policy as the bytes of a file that `read` reads."""
    return safetensors.torch.save(policy.state_dict())


def read(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        InputError: there is none.
    """
    policy = Policy()
    try:
        policy.load_state_dict(safetensors.torch.load(path.read_bytes()))
        if not all(values.isfinite().all() for values in policy.state_dict().values()):
            raise ValueError("a weight is not finite")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} holds no policy ({str(error).splitlines()[0]}): name a file that search.pretrain wrote"
        ) from error
    return policy


def start(place: str, calibration: Calibration) -> Configuration:
    """Where searches begin that `--init-from` sends elsewhere than to quintile.

    Args:
        place: a policy's file, or the folder of a run, whose codes are taken as shares of tmax.

    Raises:
        InputError: it is none of these, or the run is of other layers.
    """
    if place.endswith(".safetensors"):
        return read(Path(place)).propose(calibration)
    chosen = codes.of_run(Folder(place), [layer.name for layer in calibration.layers], "--init-from")
    if calibration.search_tmax:
        return tuple(map(tuple, codes.whole(chosen)))
    pairs = zip(chosen.values(), calibration.tmax, strict=True)
    return tuple(_codes([code / own for code in four], tmax) for (four, own), tmax in pairs)
