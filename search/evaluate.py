"""Scores codes on any split: `python -m search.evaluate --codes best.json`, or `evaluate(codes="best.json")`.

The codes may be a run's, a file's that somebody edited, or quintile; the network a teacher or a student of
`search.finetune`. It takes one process and no Ray.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from approx_env.errors import exit_status, run_module
from search.workers import processes

if __name__ == "__main__":  # before the rest is loaded
    processes.prepare()
    sys.exit(run_module("search.evaluate"))

import torch

from approx_env import data, markdown, options
from approx_env.adapt import student
from approx_env.int8 import cost, energy
from approx_env.int8.cost import KINDS
from approx_env.options import integer, option, switch
from approx_env.scoring import distill
from approx_env.scoring.evaluator import Evaluator, Score
from search import config, subject
from search.subject import Subject

OPTIONS = (*subject.OPTIONS, "split", "images", "kd_temperature", "cost", "json")
DESCRIPTION = "Scores TAP codes of an INT8 CNN on a split of its images."


@dataclass(frozen=True)
class Settings(subject.Settings):
    """Everything that the command line decides."""

    split: str = option("validation", "images to score on; test is for what was chosen", choices=data.SPLITS)
    images: int | None = integer(None, "score on the first N of them (default: all)", 1)
    json: bool = switch(False, "print JSON instead of tables")


def evaluate(codes: str | Mapping[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Scores codes on a split.

    Args:
        codes: as `--codes`, or by layer as `best.json` has them under `layers`.
        settings: the other options of `python -m search.evaluate` by their names, with underscores.

    Returns:
        What `--json` prints.

    Raises:
        InputError: something cannot be read, or does not belong together.
        TypeError: there is no such option.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(codes, str):
        given["codes"] = codes
    if unknown := set(given) - set(OPTIONS):
        raise TypeError(f"search.evaluate has no option {', '.join(sorted(unknown))}")
    texts = [part for name, value in given.items() for part in (options.flag(name), options.shown(value))]
    layers = codes if isinstance(codes, Mapping) else None
    parsed = _parse(texts, subject.contradictions if layers is None else None)
    return _measured(subject.prepare(parsed, layers), parsed)


def _parse(argv: list[str] | None, more: options.Contradictions | None = subject.contradictions) -> Settings:
    return config.parse(argv, "search.evaluate", DESCRIPTION, OPTIONS, Settings, more)


def _measured(found: Subject, settings: Settings) -> dict[str, Any]:
    problem = found.problem(settings.split, settings.images)
    scorer = Evaluator(problem)
    taken = scorer.taken(found.codes)
    score, (logits,) = taken.scores[0], taken.logits()
    return {
        "model": found.network.model,
        "dataset": found.dataset.name,
        "split": settings.split,
        "images": len(problem.labels),
        "teacher": _source(found.teacher.about),
        "student": _source(found.student.about) if found.student else None,
        "layers": student.as_layers(found.configuration),
        "acc_teacher": scorer.teacher_accuracy,
        "acc_student": score.accuracy,
        **_drop(score),
        "kd": score.kd,
        "kd_temperature": scorer.reward.kd_temperature,
        "at": score.at,
        "share_of_all_macs": score.covered,
        "shares": _by_kind(score.shares),
        "all_shares": _by_kind(cost.of_all(score.shares, score.covered)),
        "layer_shares": dict(zip(scorer.layers, map(_by_kind, score.layer_shares), strict=True)),
        "zero_natural": score.zero_natural,
        "relative_energy_sites": score.relative_energy_sites,
        "relative_energy": score.relative_energy,
        "cost": asdict(scorer.energy) | {"scope": energy.SCOPE},
        "classes": distill.class_changes(logits, scorer.teacher_logits, scorer.labels, found.network.classes),
        "notes": list(found.notes),
    }


def _source(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": about["file"], "sha256": about.get("sha256")}


def _drop(score: Score) -> dict[str, Any]:
    half = distill.INTERVAL * score.drop_error_points
    return {
        "drop_points": score.drop_points,
        "drop_error_points": score.drop_error_points,
        "drop_interval_points": [score.drop_points - half, score.drop_points + half],  # 95 %
    }


def _by_kind(shares: Sequence[float]) -> dict[str, float]:
    return {kind: float(share) for kind, share in zip(KINDS, shares, strict=True)}


def report(found: Mapping[str, Any]) -> str:
    """What `evaluate` found, for people to read."""
    low, high = found["drop_interval_points"]
    runs = "these codes" if found["student"] is None else "the student under these codes"
    rows = [("of these layers", found["shares"]), ("of all", found["all_shares"])]
    rows += [(name, shares) for name, shares in found["layer_shares"].items()]
    parts = [
        *(f"note: {note}" for note in found["notes"]),
        f"{found['model']} on {found['images']} {found['split']} images of {found['dataset']}",
        f"exact teacher {found['acc_teacher']:.2%}, {runs} {found['acc_student']:.2%}: drop {found['drop_points']:.2f} "
        f"points, 95 % interval {low:.2f} to {high:.2f}; KD {found['kd']:.4f}, AT {found['at']:.4f}",
        f"the layers feed {found['share_of_all_macs']:.1%} of all multiplications; relative energy "
        f"{found['relative_energy_sites']:.3f} of theirs, {found['relative_energy']:.3f} of all, by "
        f"{found['cost']['name']} ({energy.SCOPE})",
        "",
        markdown.table(("multiplications", *KINDS),
                       [(name, *(f"{share:.2%}" for share in shares.values())) for name, shares in rows]),
        "",
        markdown.table(("class", "images", "exact teacher", runs, "change, points"), map(_class_row, found["classes"])),
    ]  # fmt: skip
    return "\n".join(parts)


def _class_row(row: Mapping[str, Any]) -> Sequence[str]:
    if row["change_points"] is None:
        return (row["class"], "0", "", "", "")
    accuracies = (f"{row[name]:.2%}" for name in ("acc_teacher", "acc_student"))
    return (row["class"], str(row["images"]), *accuracies, f"{row['change_points']:+.2f}")


def _run(argv: list[str] | None) -> None:
    processes.prepare()
    torch.set_num_threads(1)
    settings = _parse(argv)
    found = _measured(subject.prepare(settings), settings)
    print(json.dumps(found, indent=2) if settings.json else report(found))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
