"""Codes for the layers of a network: from a best.json or a file like it, or by rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from approx_env.adapt import student
from approx_env.adapt.simulation import Configuration
from approx_env.errors import InputError
from approx_env.scoring.calibration import Calibration
from search.results import store
from search.results.folder import Folder

QUINTILE = "quintile"


def quintile(calibration: Calibration) -> Configuration:
    """The historical codes."""
    return {layer.name: (layer.quintile, layer.tmax) for layer in calibration.layers}


def whole(configuration: Configuration) -> list[tuple[int, ...]]:
    """t1, v1, t2, v2 and tmax of each layer, as evaluators take them."""
    return [(*four, tmax) for four, tmax in configuration.values()]


def of_run(folder: Folder, names: Sequence[str], option: str = "--codes") -> Configuration:
    """What a run has chosen for the layers `names`.

    Args:
        option: that named the run.

    Raises:
        InputError: it has not chosen, or its codes cannot be read.
    """
    place = f"{folder}/{store.BEST}"
    told = read(place, lambda: folder.read(store.BEST), option)
    return checked(layers_of(told, place, option), names, place, option)


def read(place: str, load: Callable[[], str | bytes] | None = None, option: str = "--codes") -> dict[str, Any]:
    """What a best.json or a student's file says.

    Args:
        place: a path, or what messages call it if `load` reads it.

    Raises:
        InputError: it cannot be read, or holds no mapping.
    """
    try:
        told = json.loads(load() if load else Path(place).read_bytes())
        if not isinstance(told, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise _no_codes(place, error, option) from error
    return told


def layers_of(told: Any, place: str, option: str = "--codes") -> dict[str, Any]:
    """The codes by layer in what such a file says; not yet checked.

    Raises:
        InputError: there are none.
    """
    own = told.get("student")
    layers = (own if isinstance(own, dict) else told).get("layers")
    if not isinstance(layers, dict):
        raise _no_codes(place, "it lacks 'layers'", option)
    return layers


def checked(layers: dict[str, Any], names: Sequence[str], place: str, option: str = "--codes") -> Configuration:
    """Codes and tmax of the layers `names`, as engines take them.

    Raises:
        InputError: they are of other layers, or not valid.
    """
    try:
        return student.codes_of(layers, names)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_codes(place, error, option) from error


def _no_codes(place: str, reason: Any, option: str) -> InputError:
    fix = f"name a best.json of its layers, or {QUINTILE}" if option == "--codes" else "name a run of it that has ended"
    return InputError(f"{option}: {place} holds no codes for this network ({reason}): {fix}")
