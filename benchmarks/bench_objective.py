"""What should a search maximise, and on which images, so that what it wins is there on other images?

Question: hill climbing maximises one aim after the other. How much does the best configuration of each lose on the
validation images, which no search has seen? How far is that from what it lost on the images that it was found on?

Method: every aim has the same images to spend: a configuration that is scored on four times as many images counts four
times. Aims are returns, with labels or without, on *search* or on *train* images. Where labels are left out, those of
the train images are never read: the teacher's own predictions take their place. Each search is a row, judged by the
best configuration that it found. Searches that have their row are not made again. Test is not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from approx_env import markdown
from approx_env.errors import InputError
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Evaluator, Problem
from approx_env.scoring.reward import Reward
from benchmarks import bench_search
from benchmarks.bench_search import Tables
from benchmarks.search_curves import told
from search import job, objectives
from search.algorithms import hill

REWARDS = {
    "return": Reward(),
    "agreement": Reward(kd_weight=0, at_weight=0),  # accuracy, where the teacher's predictions are the labels
    "kd": Reward("none", at_weight=0),
    "kd+at": Reward("none"),
}
LABELLED = ("return",)  # what reads labels: of search images alone
ROWS = "objective"  # a Parquet file
JUDGED_BY = "validation_drop_points"
EVALUATIONS = 256  # of a search on the smaller number of images
LARGER = 4  # times as many images
KEY = ["model", "teacher", "reward", "split", "images", "seed"]


@dataclass(frozen=True)
class Aim:
    """A search of one model's codes: what it maximises, on which images."""

    prepared: job.Job
    reward: str
    split: str
    images: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row from others."""
        model, digest = self.prepared.problem.network.model, self.prepared.teacher.about["sha256"][:12]
        return dict(zip(KEY, (model, digest, self.reward, self.split, self.images, self.seed), strict=True))

    def problem(self) -> Problem:
        """What its configurations are scored on."""
        images, labels = self.prepared.dataset.load(self.split, self.images)
        problem = replace(self.prepared.problem, images=images, labels=labels, reward=REWARDS[self.reward])
        return problem if self.reward in LABELLED else replace(problem, labels=predictions(Evaluator(problem)))


def predictions(evaluator: Evaluator) -> np.ndarray:
    """The classes that the exact teacher sees in an evaluator's images, `(n,) int64`."""
    return evaluator.teacher_logits.argmax(1).numpy()


def aims(images: int) -> list[tuple[str, str, int]]:
    """Return, split and number of images of each aim; the first one is what others are compared with."""
    places = [("search", images), ("search", LARGER * images), ("train", LARGER * images)]
    return [
        (reward, *place) for reward in REWARDS for place in places if place[0] == "search" or reward not in LABELLED
    ]


def found(aim: Aim, evaluator: Evaluator, count: int) -> tuple[Configuration, float]:
    """The best configuration of a search that scores `count`, and its return."""
    search, scored = hill.Search(aim.prepared.problem.calibration, aim.seed), []
    while len(scored) < count:
        asked = search.ask(count - len(scored))
        returns = [evaluator.evaluate(configuration).return_ for configuration in asked]
        search.tell(asked, [objectives.Score((value,)) for value in returns])
        scored += zip(asked, returns, strict=True)
    return max(scored, key=lambda pair: pair[1])  # of equal ones the first


def judged(evaluator: Evaluator, configuration: Configuration, prefix: str) -> dict[str, float]:
    """What a configuration loses on an evaluator's images: drop and flips in points, and KD."""
    taken = evaluator.taken(configuration)
    score, logits = taken.scores[0], taken.logits()[0]
    flips = 100 * float((logits.argmax(1).numpy() != predictions(evaluator)).mean())
    lost = {"drop_points": score.drop_points, "kd": score.kd, "flips_points": flips}
    return {f"{prefix}_{name}": value for name, value in lost.items()}


def search(arguments: argparse.Namespace, tables: Tables) -> None:
    """Makes every search that has no row; seeds are the outer loop, so that what is cut off has some of every aim."""
    for model in arguments.models:
        prepared = job.prepare(bench_search.settings(model, 1, arguments.data_dir))
        validation = Evaluator(prepared.held_out["validation"], cache_bytes=0)
        for seed in range(arguments.seeds):
            for aim in (Aim(prepared, *each, seed) for each in aims(arguments.images)):
                if not tables.of(ROWS, aim.key):
                    count = max(1, arguments.evaluations * arguments.images // aim.images)
                    tables.add(ROWS, [_row(aim, validation, count)])
                    print(f"{aim.key}: done", flush=True)


def _row(aim: Aim, validation: Evaluator, count: int) -> dict[str, Any]:
    evaluator = Evaluator(aim.problem())
    best, return_ = found(aim, evaluator, count)
    own = {"evaluations": count, "return": return_, "codes": [code for codes in best for code in codes]}
    return aim.key | own | judged(evaluator, best, "own") | judged(validation, best, "validation")


def table(rows: pd.DataFrame) -> str:
    """Means over seeds by aim, the lowest drop on validation first.

    Args:
        rows: of one model and teacher.
    """
    seeds = {aim: part.set_index("seed") for aim, part in rows.groupby(["reward", "split", "images"])}
    reference = aims(int(rows["images"].min()))[0]
    compared = f"minus the return's on {reference[2]} images (95 %)"
    heads = ("maximised", "images", "seeds", "drop on validation", compared,
             "drop on its own images", "KD on validation", "on its own images", "flips on validation, %")  # fmt: skip
    ordered = sorted(seeds, key=lambda aim: seeds[aim][JUDGED_BY].mean())
    return markdown.table(heads, [_line(aim, seeds[aim], seeds.get(reference)) for aim in ordered])


def _line(aim: tuple[str, str, int], own: pd.DataFrame, reference: pd.DataFrame | None) -> tuple[str, ...]:
    reward, split, images = aim
    means = own[[column for column in own if column.startswith(("own_", "validation_"))]].mean()
    return (
        reward, f"{images} of {split}", str(len(own)), f"{means[JUDGED_BY]:.2f}",
        "" if own is reference or reference is None else told(own[JUDGED_BY] - reference[JUDGED_BY], 2),
        f"{means['own_drop_points']:.2f}" if reward in LABELLED else "", f"{means['validation_kd']:.4f}",
        f"{means['own_kd']:.4f}", f"{means['validation_flips_points']:.2f}",
    )  # fmt: skip


def tell(tables: Tables) -> None:
    """Prints a table for each model and teacher that has rows.

    Raises:
        InputError: there are none.
    """
    rows = tables.frame(ROWS)
    if rows.empty:
        raise InputError("there are no rows of searches: leave --draw out to make some")
    for (model, teacher), part in rows.groupby(["model", "teacher"]):
        print(f"\n{model} (teacher {teacher})\n\n{table(part)}", flush=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ends with status 2 if it is wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks objective", description=__doc__.splitlines()[0])
    bench_search.add_arguments(parser)
    text = f"search images; and {LARGER} times as many"
    parser.add_argument("--images", type=int, default=1024, metavar="N", help=text)
    text = f"of each search on so many images; a {LARGER}th of that on {LARGER} times as many"
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, metavar="N", help=text)
    return bench_search.checked(parser, argv, ("seeds", "images", "evaluations"))


def main(argv: Sequence[str]) -> int:
    """Searches what is asked for, then tells; returns the exit status."""
    return bench_search.carried_out(argv, parse, ([ROWS], KEY, __doc__), search, tell)
