"""The teacher of a search: one that is shipped, one in a file, or that of a network of the user's own."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from approx_env import data
from approx_env.errors import InputError
from approx_env.teachers import models
from approx_env.teachers import store as teachers
from approx_env.teachers.models import own
from approx_env.teachers.store import Teacher
from search.config import Settings

DEFAULT = "squeezenet"  # what is searched if nothing else is asked for
FOLDER = Path("teachers")  # where training puts what it makes, unless told


def named_teacher(settings: Settings, dataset: data.Dataset) -> tuple[Settings, Teacher]:
    """Reads the teacher that --model, --weights and --teacher name.

    Returns:
        The settings, in which `model` is now the network's name, and `teacher` the file if the network is one's own;
        and the teacher.

    Raises:
        InputError: there is none, it cannot be read, or it was made of other files than these options name.
    """
    found = teachers.read(settings.teacher) if settings.teacher else None
    name = models.name_of(settings.model or (found.network.model if found else DEFAULT))
    if not re.fullmatch(r"\w{1,64}", name, re.ASCII):  # it becomes a part of a path
        raise InputError(f"the network must be called by letters, digits and _, got {name!r}: make its teacher anew")
    if not found and name in models.MODELS:
        found = teachers.read(teachers.path_of(name, dataset.name))
    elif not found:
        found = _made_before(settings, name, dataset)
    file = settings.teacher if name in models.MODELS else found.about["file"]
    return replace(settings, model=name, teacher=file, weights=None), found


def _made_before(settings: Settings, name: str, dataset: data.Dataset) -> Teacher:
    """The teacher of a network of one's own, where training has put it."""
    path = FOLDER / f"{teachers.stem_of(name, dataset.name)}.int8.json"
    origin = own.origin(settings.model, settings.weights)
    if not path.exists():
        model = settings.model if own.parsed(settings.model) else f"FILE.py:{name}"
        options = {"--model": model, "--weights": settings.weights, "--epochs": "0", "--dataset": settings.dataset,
                   "--data-dir": settings.data_dir}  # fmt: skip
        command = shlex.join(part for option in options.items() if option[1] is not None for part in option)
        raise InputError(f"{path} is not there: make it by `python -m approx_env.training {command}`, which quantises "
                         "trained weights, or name another teacher with --teacher")  # fmt: skip
    found = teachers.read(path)
    changed = [part.partition("_")[0] for part, digest in origin.items() if found.about.get(part) != digest]
    if changed:
        raise InputError(f"{path} was made of another {' and other '.join(changed)} than --model and --weights name: "
                         "make it anew by approx_env.training, or name it with --teacher if it will do")  # fmt: skip
    return found
