"""A user's own network: `FILE.py:NAME`, what gives an `nn.Module` in a Python file, or `FILE.onnx`.

NAME is a class or a function. It is called with the number of classes if it has an argument `classes` or `num_classes`,
or one argument without a default; else without arguments. To read the file is to run it: its folder is on `sys.path`
meanwhile, as if Python had been started with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers.models.blocks import traits

FORM = "FILE.py:NAME or FILE.onnx"
COUNTED = ("classes", "num_classes")  # arguments that take the number of classes
FEW = 5  # faults of each kind that an error lists


@dataclass(frozen=True)
class Reference:
    """Where a network of one's own is."""

    file: Path
    attribute: str | None  # NAME; None of an .onnx

    @property
    def name(self) -> str:
        """What files and rows call the network: NAME, or the stem of an .onnx, in letters that any file may have."""
        text = self.file.stem if self.attribute is None else self.attribute
        return re.sub(r"[^A-Za-z0-9_]+", "_", text)[:60].strip("_") or "network"

    def __str__(self) -> str:
        return str(self.file) if self.attribute is None else f"{self.file}:{self.attribute}"


def parsed(text: str) -> Reference | None:
    """The reference that a text is, or None. A path may hold colons."""
    file, colon, attribute = text.rpartition(":")
    if text.endswith(".onnx"):
        return Reference(Path(text), None)
    return Reference(Path(file), attribute) if colon and file.endswith(".py") and attribute.isidentifier() else None


def build(reference: Reference, classes: int) -> nn.Module:
    """The network for so many classes.

    Raises:
        InputError: the file cannot be read or run, it gives no network, or one for other images or classes; it is an
            .onnx, and the package onnx is missing.
    """
    module = _read_onnx(reference.file) if reference.attribute is None else _called(reference, classes)
    _check(reference, module, classes)
    return module


def load_weights(module: nn.Module, path: str) -> None:
    """Puts the tensors of a .safetensors file, a state_dict, into a module.

    Raises:
        InputError: it cannot be read, or its names or shapes are not those of the module.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"--weights {path} cannot be read ({error}): name a file that safetensors.torch.save_file("
            "model.state_dict(), FILE) wrote"
        ) from error
    # What batch norm counts has no influence, and not every file has it.
    found, wanted = (
        {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (found, module.state_dict())
    )
    faults = {
        "lacks": sorted(set(wanted) - set(found)),
        "has, and the network has not,": sorted(set(found) - set(wanted)),
        "has in another shape": [
            f"{name} {tuple(found[name].shape)}, wanted {tuple(wanted[name].shape)}"
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        ],
    }
    problems = [
        f"--weights {path} {what} {', '.join(names[:FEW])}" + (f" and {len(names) - FEW} more" * (len(names) > FEW))
        for what, names in faults.items()
        if names
    ]
    if problems:
        raise InputError(problems)
    broken = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(f"--weights {path} holds numbers that are not finite, in {', '.join(broken[:FEW])}")
    module.load_state_dict(found, strict=False)


def origin(text: str, weights: str | None) -> dict[str, str]:
    """SHA-256 of the files that a network comes from: of its own, if it is one's own, and of its weights.

    Args:
        text: as `models.build` takes it.

    Raises:
        InputError: one cannot be read.
    """
    reference = parsed(text)
    files = {"file_sha256": reference and reference.file, "weights_sha256": weights}
    return {what: _digest(path) for what, path in files.items() if path is not None}


def _digest(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): name a file that is there") from error


def _read_onnx(path: Path) -> nn.Module:
    try:
        from approx_env.teachers.models import onnx  # no other network needs that package
    except ModuleNotFoundError as error:
        text = f"--model {path} needs the {error.name} package: pip install 'tapsearch[export]'"
        raise InputError(text) from error
    return onnx.read(path)


def _called(reference: Reference, classes: int) -> nn.Module:
    """What NAME gives."""
    place = f"--model {reference}"
    file = _run(reference.file)
    if not hasattr(file, reference.attribute):
        own = [
            name
            for name, value in vars(file).items()
            if callable(value) and getattr(value, "__module__", None) == file.__name__
        ]
        raise InputError(f"{place}: there is no such name in it: it has {', '.join(own) or 'no class and no function'}")
    make = getattr(file, reference.attribute)
    if not callable(make) or isinstance(make, nn.Module):
        raise InputError(f"{place}: NAME must be a class or a function that gives a module, got {type(make).__name__}")
    with _on_path(reference.file), _errors_told(reference.file):
        module = _with_classes(make, classes)
    if not isinstance(module, nn.Module):
        raise InputError(f"{place}: NAME must give a torch.nn.Module, and gives {type(module).__name__}")
    return module


def _with_classes(make: Callable[..., Any], classes: int) -> Any:
    """Calls it by the rule of this file."""
    arguments = inspect.signature(make).parameters.values()
    named = [each.name for each in arguments if each.name in COUNTED and each.kind != each.POSITIONAL_ONLY]
    if named:
        return make(**{named[0]: classes})
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [each for each in arguments if each.default is each.empty and each.kind in positional]
    return make(classes) if wanted else make()


def _run(path: Path) -> ModuleType:
    """What a Python file defines; a process runs it once."""
    if not os.path.isfile(path):  # Path.is_file would raise for a name that is too long
        raise InputError(f"--model: {path} is not a file: name one as {FORM}")
    with _on_path(path), _errors_told(path):
        return _executed(path.resolve())


@cache
def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_network_{path.stem}", path)
    file = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = file  # dataclasses look their module up there
    spec.loader.exec_module(file)
    return file


@contextlib.contextmanager
def _on_path(path: Path) -> Iterator[None]:
    """The file's folder is the first that modules are looked for in."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _errors_told(path: Path) -> Iterator[None]:
    """Whatever the file raises becomes one line: file, line, exception."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
        place = f"{path}, line {line}" if line else str(path)
        raise InputError(f"--model: {place}: {type(error).__name__}: {text}: put the file right") from error


def _check(reference: Reference, module: nn.Module, classes: int) -> None:
    """Raises InputError if the module does not make one logit a class of an image."""
    side = traits(module).image_size
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(1, 3, side, side))
    except Exception as error:  # whatever a module runs into
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"--model {reference} cannot take images of 3x{side}x{side} pixels ({type(error).__name__}: {text}): build "
            "it for them, or give the module an attribute image_size"
        ) from error
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != (1, classes):
        raise InputError(
            f"--model {reference} must give one logit for each of {classes} classes of the dataset, (1, {classes}) for "
            f"one image, and gives {got}"
        )
