"""Writes an INT8 network and its codes for other tools: each format is a module of `formats`, found by its name.

A format has `write(deployment, folder)`, which writes files into a folder that is there, and returns what it has to
report as JSON takes it. `bundle` adds golden vectors and a manifest, and publishes the folder whole.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from approx_env.errors import InputError
from approx_env.export import formats

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(formats.__path__)))


def find(name: str) -> ModuleType:
    """The module of a format, one of `NAMES`.

    Raises:
        InputError: it needs a package that is not installed.
    """
    try:
        return importlib.import_module(f"{formats.__name__}.{name}")
    except ModuleNotFoundError as error:
        raise InputError(f"--format {name} needs the {error.name} package: pip install 'tapsearch[export]'") from error
