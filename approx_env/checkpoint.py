"""An unfinished training on disk: written after each epoch, read when the same command starts again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from approx_env.errors import InputError


class Checkpoint:
    """A training's state in `path`; `identity` tells whose it is."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self._identity = identity

    def save(self, epoch: int, stateful: dict[str, Any]) -> None:
        """Keeps the state of each part after `epoch` finished epochs; a kill at any time leaves the old or the new."""
        temporary = self.path.with_suffix(".tmp")
        states = {name: part.state_dict() for name, part in stateful.items()}
        torch.save({"identity": self._identity, "epoch": epoch} | states, temporary)
        os.replace(temporary, self.path)

    def resume(self, stateful: dict[str, Any]) -> int:
        """Loads the state of each part and returns the number of finished epochs (0 without a file).

        Raises:
            InputError: the file is no checkpoint, or one of another training.
        """
        if not self.path.exists():
            return 0
        strange = InputError(f"{self.path} is no checkpoint of a training: remove it, or choose another --output")
        try:
            saved = torch.load(self.path, weights_only=True)
            known, epoch = dict(saved["identity"]), saved["epoch"]
        except Exception as error:  # torch raises whatever unpickling runs into
            raise strange from error
        own = self._identity
        differing = sorted(key for key in {*known, *own} if key not in known or known[key] != own.get(key, ...))
        if differing:
            raise InputError(
                f"{self.path} is an unfinished training with another {', '.join(differing)}: "
                "finish it, remove it, or choose another --output"
            )
        if not set(stateful) <= set(saved):
            raise strange
        for name, part in stateful.items():
            part.load_state_dict(saved[name])
        print(f"resuming after epoch {epoch} from {self.path}", flush=True)
        return epoch
