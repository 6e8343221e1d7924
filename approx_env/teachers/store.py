"""Teachers on disk: arrays in `NAME.safetensors`, everything else in `NAME.json` beside it. Never pickle.

The INT8 teacher is a network (`approx_env.int8.network`); the float teacher is a module's state. The JSON names the
SHA-256 of the arrays, so that a truncated or exchanged file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from approx_env.errors import InputError
from approx_env.int8 import quantize
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, OPERATIONS, Node
from approx_env.teachers import models

FORMAT = 2  # 1 had float32 scales of weights in place of integer multipliers
SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Teacher:
    """An INT8 network with what is known of its making."""

    network: Network
    about: dict[str, Any]  # dataset, recipe, accuracies in [0, 1] by split, file


def stem_of(model: str, dataset: str) -> str:
    """How the files of a teacher begin."""
    return f"{model}-{dataset.replace(':', '-')}"


def path_of(model: str, dataset: str) -> Path:
    """Where the package keeps the INT8 teacher of `model` on `dataset`.

    Raises:
        InputError: none is shipped.
    """
    path = SHIPPED / f"{stem_of(model, dataset)}.int8.json"
    if not path.exists():
        raise InputError(
            f"no teacher of {model} on {dataset} is shipped: train one by `python -m approx_env.training --model "
            f"{model} ...` and name its .int8.json with --teacher"
        )
    return path


def write(path: Path, network: Network, about: dict[str, Any]) -> None:
    """Writes an INT8 teacher to `path` (a .int8.json) and the .safetensors beside it."""
    arrays, description = _describe(network)
    _write(path, arrays, about | {"network": description})


def write_float(path: Path, model: str, module: nn.Module, about: dict[str, Any]) -> None:
    """Writes a float teacher to `path` (a .float.json) and the .safetensors beside it."""
    arrays = {name: array.detach().numpy() for name, array in module.state_dict().items()}
    _write(path, arrays, about | {"model": model})


def read(path: str | os.PathLike) -> Teacher:
    """Reads an INT8 teacher from its JSON (or the safetensors beside it).

    Raises:
        InputError: a file is missing, truncated, exchanged or no INT8 teacher.
    """
    path = Path(path)
    path = path.with_suffix(".json") if path.suffix == ".safetensors" else path
    arrays, about = _read(path)
    if "network" in about and about.get("format") == 1:
        raise InputError(
            f"{path} is an INT8 teacher of format 1, whose codes differ from CPU to CPU: convert it by `python -m "
            f"approx_env.catalogue convert {path}`"
        )
    if about.get("format") != FORMAT or not isinstance(about.get("network"), dict):
        raise InputError(f"{path} is not an INT8 teacher of format {FORMAT}: name a .int8.json that training wrote")
    try:
        teacher = Teacher(_rebuild(about.pop("network"), arrays), about | {"file": str(path)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not describe a network ({error}): write it anew by training") from error
    return teacher


def read_format_1(path: Path) -> tuple[Network, dict[str, Any]]:
    """An INT8 teacher of format 1 with its requantisation made integer, and what was known of its making.

    The quantiser rounds its weights once more, to scales that are multiples of the multiplier's step.

    Raises:
        InputError: as `read`.
    """
    arrays, about = _read(path)
    if about.get("format") != 1 or "network" not in about:
        raise InputError(f"{path} is not an INT8 teacher of format 1: there is nothing to convert")
    description = about.pop("network")
    scales = {INPUT: description["input_scale"]}
    for entry in description["nodes"]:
        name, scale = entry["name"], scales[entry["inputs"][0]]
        if "relu" in entry:
            unit = arrays.pop(f"{name}/weight_scale").astype(np.float64)
            codes = arrays[f"{name}/weight"]
            weight, bias = codes * unit.reshape(-1, *[1] * (codes.ndim - 1)), arrays[f"{name}/bias"] * unit * scale
            rounded = quantize.rounded(weight, bias, scale, entry["scale"])
            entry |= {part: rounded.pop(part) for part in ("scale", "logits")}
            arrays |= {f"{name}/{part}": array for part, array in rounded.items()}
            scale = entry["scale"]
        scales[name] = scale
    return _rebuild(description, arrays), about


def read_float(path: str | os.PathLike) -> nn.Module:
    """Reads a float teacher, in eval mode.

    Raises:
        InputError: as `read`.
    """
    arrays, about = _read_float(Path(path))
    try:
        module = models.build(about["model"], len(about["classes"]), **about["architecture"])
        module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not hold a float teacher ({told}): write it anew by training") from error
    return module.eval()


def about_float(path: str | os.PathLike) -> dict[str, Any]:
    """What is known of the making of a float teacher.

    Raises:
        InputError: as `read`.
    """
    return _read_float(Path(path))[1]


def _describe(quantised: Network) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Splits a network into arrays by `node/field` and a JSON value."""
    arrays, nodes = {}, []
    for node in quantised.nodes:
        entry: dict[str, Any] = {"op": type(node).__name__}
        for part in fields(node):
            value = getattr(node, part.name)
            if isinstance(value, np.ndarray):
                arrays[f"{node.name}/{part.name}"] = value
            else:
                entry[part.name] = value
        nodes.append(entry)
    own = {part.name: getattr(quantised, part.name) for part in fields(quantised) if part.init and part.name != "nodes"}
    return arrays, own | {"nodes": nodes}


def _rebuild(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Network:
    """The network of a file.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it describes none that could be a teacher.
    """
    nodes: list[Node] = []
    for entry in description.pop("nodes"):
        kind = OPERATIONS[entry.pop("op")]
        entry["inputs"] = tuple(entry["inputs"])
        stored = {part.name for part in fields(kind) if part.default is MISSING} - set(entry)
        nodes.append(kind(**entry, **{name: arrays[f"{entry['name']}/{name}"] for name in stored}))
    tuples = {key: tuple(value) for key, value in description.items() if isinstance(value, list)}
    made = Network(nodes=tuple(nodes), **(description | tuples))
    last = made.nodes[-1].name
    if last in made.scales or made.shapes[last] != (len(made.classes),):
        raise ValueError(f"the last node must give {len(made.classes)} logits, one a class")
    return made


def _write(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    _replace(path.with_suffix(".safetensors"), content)
    about = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest(), **about}
    _replace(path, (json.dumps(about, indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        arrays_path = path.with_suffix(".safetensors")
        about = json.loads(path.read_text())
        content = arrays_path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"teacher {path} cannot be read ({error}): name a .json that training wrote (--teacher, --initial)"
        ) from error
    if not isinstance(about, dict) or hashlib.sha256(content).hexdigest() != about.get("sha256"):
        raise InputError(f"{arrays_path} is not what {path.name} describes (truncated or exchanged): copy both anew")
    try:
        return load(content), about
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{arrays_path} holds no arrays ({error}): write it anew by training") from error


def _read_float(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, about = _read(path)
    if "model" not in about:
        raise InputError(f"{path} is not a float teacher: name a .float.json that training wrote")
    return arrays, about
