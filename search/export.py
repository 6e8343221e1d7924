"""Writes a network under its codes for other tools: `python -m search.export RUN --format c --output DIR`.

`approx_env.export` holds the formats. Each export has golden vectors of 16 validation images and a manifest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approx_env.errors import InputError, exit_status, run_module
from search.workers import processes

if __name__ == "__main__":  # before the rest is loaded
    processes.prepare()
    sys.exit(run_module("search.export"))

import torch

from approx_env import data, export
from approx_env.export import bundle
from approx_env.export.deployment import GOLDEN_IMAGES, Deployment, run_split
from approx_env.options import option, switch
from search import config, subject
from search.job import commit
from search.results import store
from search.subject import Subject

GOLDEN_SPLIT = "validation"
OPTIONS = (*subject.OPTIONS, "format", "output", "split", "force")
DESCRIPTION = "Writes an INT8 CNN under TAP codes for other tools. A run or best.json may come without --codes."


@dataclass(frozen=True)
class Settings(subject.Settings):
    """Everything that the command line decides."""

    format: str | None = option(None, "what to write", choices=export.NAMES)
    output: str | None = option(None, "folder to make", metavar="DIR")
    split: str | None = option(None, "images to write as well, with our accuracy (c)", choices=data.SPLITS)
    force: bool = switch(False, "replace an older export")


def _contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
    yield from subject.contradictions(settings, given)
    if settings.format is None:
        yield {"format"}, f"--format must be given: {', '.join(export.NAMES)}"
    if settings.output is None:
        yield {"output"}, "--output must name the folder to make"
    if settings.split and settings.format not in (None, "c"):
        yield {"split", "format"}, f"--split is for programs that read images; --format {settings.format} has none"


def _deployment(found: Subject, settings: Settings) -> Deployment:
    network, dataset = found.runs, found.dataset
    golden = dataset.load(GOLDEN_SPLIT, min(GOLDEN_IMAGES, dataset.size(GOLDEN_SPLIT)))
    whole = None
    if settings.split:
        images = dataset.load(settings.split)
        whole = run_split(settings.split, network, found.configuration, *images, settings.engine, settings.device)
    return Deployment(network, found.configuration, *golden, whole)


def _about(found: Subject) -> dict[str, Any]:
    """What the manifest says of where the network came from."""
    sources = {"teacher": found.teacher.about, "student": found.student.about if found.student else None}
    return {
        "command": ["python", *sys.orig_argv[1:]],
        "commit": commit(),
        **{name: about and {"file": about["file"], "sha256": about["sha256"]} for name, about in sources.items()},
        "dataset": {"name": found.dataset.name, "digest": found.dataset.digest, "golden": GOLDEN_SPLIT},
        "notes": list(found.notes),
    }


def _tell(manifest: Mapping[str, Any], settings: Settings) -> None:
    for note in manifest["notes"]:
        print(f"note: {note}")
    if settings.student is None and settings.codes and os.path.exists(os.path.join(settings.codes, store.STUDENT)):
        print(f"note: {settings.codes} has a student, which --student {settings.codes}/{store.STUDENT} would export")
    for name, value in manifest["report"].items():
        print(f"{name.replace('_', ' ')}: {value}")
    if split := manifest["split"]:
        print(f"ours on {split['images']} {split['name']} images: accuracy {split['accuracy']}, "
              f"logits crc32 {split['logits_crc32']}")  # fmt: skip
    print(f"{len(manifest['files'])} files and {bundle.MANIFEST} in {settings.output}")


def _run(argv: list[str] | None) -> None:
    processes.prepare()
    torch.set_num_threads(1)
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        if any(part.partition("=")[0] == "--codes" for part in argv):
            raise InputError(f"--codes names what is exported, and so does {argv[0]}: leave one out")
        argv.insert(0, "--codes")
    settings = config.parse(argv, "search.export", DESCRIPTION, OPTIONS, Settings, _contradictions)
    bundle.check(Path(os.path.abspath(settings.output)), settings.force)  # before anything is computed
    found = subject.prepare(settings)
    deployment = _deployment(found, settings)
    manifest = bundle.write(settings.output, settings.format, deployment, _about(found), force=settings.force)
    _tell(manifest, settings)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
