"""An unfinished training on disk: written now and then, read when the same command starts again.

The file is a safetensors file. It holds plain tensors, and its header holds JSON values: whose training it is, how many
epochs, or steps, are finished, and what the training noted. Nothing in it can run code.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from approx_env.errors import InputError


class Checkpoint:
    """A training's state in `path`; `identity` tells whose it is, as JSON can hold it; `unit` what is counted.

    `notes` is what the training wants to find again, as JSON can hold it; None before it has noted anything.
    """

    def __init__(self, path: Path, identity: dict[str, Any], unit: str = "epoch"):
        self.path, self.notes = path, None
        self._identity, self._unit = identity, unit

    def save(self, epoch: int, stateful: dict[str, Any]) -> None:
        """Keeps the state of each part after `epoch` finished units; a kill at any time leaves the old or the new.

        Args:
            stateful: modules and optimizers, which have taken a step, by name. Names hold no '/'.
        """
        temporary = self.path.with_suffix(".tmp")
        tensors = {
            f"{name}/{key}": tensor.detach().contiguous()
            for name, part in stateful.items()
            for key, tensor in _tensors(part).items()
        }
        header = {"identity": self._identity, "epoch": epoch, "notes": self.notes}
        about = {name: json.dumps(value) for name, value in header.items()}
        save_file(tensors, temporary, about)
        os.replace(temporary, self.path)

    def resume(self, stateful: dict[str, Any]) -> int:
        """Loads the state of each part and returns the number of finished units (0 without a file).

        Raises:
            InputError: the file is no checkpoint, or one of another training. The parts stay as they were.
        """
        if not self.path.exists():
            return 0
        strange = InputError(f"{self.path} is no checkpoint of a training: remove it, or choose another --output")
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                known, epoch = (json.loads(about[name]) for name in ("identity", "epoch"))
                notes = json.loads(about.get("notes", "null"))
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            own = json.loads(json.dumps(self._identity))
            differing = sorted(key for key in {*known, *own} if key not in known or known[key] != own.get(key, ...))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise strange from error
        if differing:
            raise InputError(
                f"{self.path} is an unfinished training with another {', '.join(differing)}: "
                "finish it, remove it, or choose another --output"
            )
        parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, tensor in saved.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor
        if type(epoch) is not int or not all(_fits(part, parts[name]) for name, part in stateful.items()):
            raise strange
        for name, part in stateful.items():
            _load(part, parts[name])
        self.notes = notes
        print(f"resuming after {self._unit} {epoch} from {self.path}", flush=True)
        return epoch


def _tensors(part: Any) -> dict[str, torch.Tensor]:
    """What a module or an optimizer has learnt. An optimizer's settings follow from the recipe and are left out."""
    state = part.state_dict()
    if not isinstance(part, torch.optim.Optimizer):
        return state
    return {f"{index}.{name}": value for index, kept in state["state"].items() for name, value in kept.items()}


def _fits(part: Any, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are a state of this part. An optimizer has one for each parameter that had a gradient."""
    if isinstance(part, torch.optim.Optimizer):
        count = sum(len(group["params"]) for group in part.param_groups)
        known = {key.partition(".")[0] for key in tensors}
        return bool(known) and known <= {str(index) for index in range(count)}
    shapes = {name: tensor.shape for name, tensor in part.state_dict().items()}
    return shapes == {name: tensor.shape for name, tensor in tensors.items()}


def _load(part: Any, tensors: dict[str, torch.Tensor]) -> None:
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(tensors)
        return
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = value
    part.load_state_dict({"state": dict(state), "param_groups": part.state_dict()["param_groups"]})
