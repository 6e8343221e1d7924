"""Publishes what a format writes as a folder that is there whole or not at all, with golden vectors and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from approx_env import export
from approx_env.adapt import student
from approx_env.errors import InputError
from approx_env.export.deployment import Deployment, Split

SCHEMA_VERSION = 1
MANIFEST, GOLDEN = "manifest.json", "golden.npz"


def write(
    output: str | os.PathLike, format: str, deployment: Deployment, about: Mapping[str, Any], *, force: bool = False
) -> dict[str, Any]:
    """Exports a deployment.

    Args:
        output: the folder to make.
        format: one of `export.NAMES`.
        about: what the manifest says besides: command, commit, teacher, student, dataset.
        force: whether an export that is there is replaced.

    Returns:
        The manifest.

    Raises:
        InputError: the folder is there, or cannot be written; the format cannot hold this network.
    """
    with whole(Path(os.path.abspath(output)), force) as folder:
        report = export.find(format).write(deployment, folder)
        golden = _write_golden(deployment, folder)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "format": format,
            **about,
            "network": _network(deployment),
            "codes": _codes(deployment),
            "golden": golden,
            "split": _split(deployment.split),
            "report": report,
            "files": {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in _files(folder)},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


@contextmanager
def whole(output: Path, force: bool) -> Iterator[Path]:
    """A temporary folder, which becomes `output` when the block ends, and is gone if the block fails.

    Raises:
        InputError: `output` is there, and may not be replaced; or it cannot be written.
    """
    check(output, force)
    unique = uuid.uuid4().hex
    temporary = output.with_name(f".{output.name}.{unique}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _publish(temporary, output, output.with_name(f".{output.name}.{unique}.old"))
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error}): choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check(output: Path, force: bool) -> None:
    """Raises InputError unless `output` is free, or holds an export and nothing else, which `force` lets go."""
    if not os.path.lexists(output):
        return
    if not force:
        raise InputError(f"--output {output} is there: choose another folder, or replace an older export by --force")
    try:
        manifest = json.loads((output / MANIFEST).read_text())
        own = {*manifest["files"], MANIFEST} if manifest["schema_version"] == SCHEMA_VERSION else None
        strange = [str(path.relative_to(output)) for path in _files(output)]
        strange = [name for name in strange if name not in own]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--output {output} holds no export ({error}): --force replaces nothing else") from error
    if strange:
        raise InputError(f"--output {output} holds {strange[0]}, which no export wrote: move it, for --force removes "
                         "all that is there")  # fmt: skip


def _publish(temporary: Path, output: Path, former: Path) -> None:
    there = os.path.lexists(output)
    if there:
        os.rename(output, former)
    try:
        os.rename(temporary, output)
    except OSError:
        if there:
            os.rename(former, output)
        raise
    if there:
        shutil.rmtree(former, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _network(deployment: Deployment) -> dict[str, Any]:
    network = deployment.network
    return {
        "model": network.model,
        "classes": list(network.classes),
        "input_shape": list(network.input_shape),
        "input_scale": network.input_scale,
        "input_zero_point": network.input_zero_point,
        "standardised": network.standardised,
        "logit_scale": network.logit_scale,
        "layers": list(network.layers),
    }


def _codes(deployment: Deployment) -> dict[str, Any]:
    layers = student.as_layers(deployment.configuration)
    return {"sha256": _digest(json.dumps(layers, sort_keys=True).encode()), "layers": layers}


def _write_golden(deployment: Deployment, folder: Path) -> dict[str, Any]:
    """Input, every node's output and labels of a few images; what the manifest says of them."""
    files = deployment.files
    arrays = {files[name]: array for name, array in deployment.golden.items()}
    np.savez_compressed(folder / GOLDEN, labels=deployment.labels, **arrays)
    tensors = {name: {"key": files[name], "shape": list(array.shape), "dtype": str(array.dtype)}
               for name, array in deployment.golden.items()}  # fmt: skip
    return {"file": GOLDEN, "images": len(deployment.images), "logits": files[deployment.network.nodes[-1].name],
            "tensors": tensors}  # fmt: skip


def crc32(logits: np.ndarray) -> str:
    """CRC-32 of logits `(n, classes) int64`, eight bytes each, the lowest first."""
    return f"{zlib.crc32(logits.astype('<i8').tobytes()):08x}"


def _split(split: Split | None) -> dict[str, Any] | None:
    if split is None:
        return None
    return {
        "name": split.name,
        "images": len(split.labels),
        "accuracy": split.accuracy,
        "logits_crc32": crc32(split.logits),
    }
