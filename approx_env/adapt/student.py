"""Students on disk: an INT8 network as a teacher's file has it, with the codes that it was made for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approx_env import tap
from approx_env.adapt.simulation import Configuration
from approx_env.errors import InputError
from approx_env.int8.network import Network
from approx_env.teachers import store

OWN = ("format", "sha256", "file", "student")  # what a file says of itself, not of how its network was made


@dataclass(frozen=True)
class Student:
    """An INT8 network and the operator that it runs under."""

    network: Network
    configuration: Configuration  # codes and tmax by layer
    about: dict[str, Any]  # as of a teacher; 'student' tells how it was made


def write(
    path: Path,
    network: Network,
    configuration: Configuration,
    teacher: Mapping[str, Any],
    made: Mapping[str, Any],
) -> None:
    """Writes a student to `path` (a .int8.json) and the .safetensors beside it.

    Args:
        teacher: what is known of the teacher's making, as `store.read` gives it.
        made: how the student was made, and what it measured, as JSON can hold it.
    """
    own = {"teacher_sha256": teacher.get("sha256"), "layers": as_layers(configuration), **made}
    kept = {key: value for key, value in teacher.items() if key not in OWN}
    store.write(path, network, kept | {"student": own})


def read(path: str | os.PathLike) -> Student:
    """Reads a student from its JSON (or the safetensors beside it).

    Raises:
        InputError: as `store.read`; it is a teacher, or its codes are not valid.
    """
    found = store.read(path)
    try:
        configuration = codes_of(found.about["student"]["layers"], found.network.layers)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no student ({error}): name a .int8.json that search.finetune wrote") from error
    return Student(found.network, configuration, found.about)


def as_layers(configuration: Configuration) -> dict[str, dict[str, int]]:
    """Codes and tmax by layer, as `best.json` has them; `codes_of` reads them."""
    return {
        name: {f"{code}_code": int(value) for code, value in zip(tap.WITH_TMAX, (*codes, tmax), strict=True)}
        for name, (codes, tmax) in configuration.items()
    }


def codes_of(layers: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Codes and tmax of the named layers, from JSON as `best.json` has it.

    Raises:
        KeyError, TypeError, ValueError: they are missing, of other layers, or not valid.
    """
    if set(layers) != set(names):
        raise ValueError(f"there must be codes for the layers {', '.join(names)}, got {', '.join(layers)}")
    found = {}
    for name in names:
        *codes, tmax = (layers[name][f"{code}_code"] for code in tap.WITH_TMAX)
        if not all(type(code) is int for code in (*codes, tmax)):
            raise ValueError(f"codes of {name} must be whole numbers, got {layers[name]}")
        tap.check(codes, tmax)
        found[name] = tuple(codes), tmax
    return found
