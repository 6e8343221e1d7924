"""Does a policy propose good codes for a network that it has never seen, before anything is scored?

Question: is what the policy proposes better than quintile, in return and in KD on test images, on a network that was
kept from its training?

Method: networks fall into families. For each family `search.pretrain` trains a policy on the teachers of all others,
which then proposes codes for the teachers of this one, from the four numbers of each layer alone. Both configurations
are scored on 1,024 search images (all, if there are fewer) and on the test images. Rows that are there are not made
again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from approx_env import markdown
from approx_env.errors import InputError
from approx_env.scoring.evaluator import Evaluator
from benchmarks import bench_search
from benchmarks.bench_search import Tables
from search import pretrain, proposal

FAMILIES = ("squeezenet", "alexnet", "resnet", "mobilenet", "vgg")  # how the names of their networks begin
ROWS = "transfer"  # a Parquet file
KEY = ["family", "seed"]
CODES = ("quintile", "proposed")
TOLD = 10  # iterations between two lines


def measure(arguments: argparse.Namespace, tables: Tables) -> None:
    """Trains a policy for each family that lacks rows, and writes what it proposes and what that scores."""
    families: dict[str, list[str]] = {}
    for name in arguments.teachers:
        families.setdefault(_family(name), []).append(name)
    for seed in range(arguments.seeds):
        for family, own in families.items():
            if not tables.of(ROWS, {"family": family, "seed": seed}):
                others = [name for name in arguments.teachers if name not in own]
                found = pretrain.sources(others, arguments.data_dir)
                policy = pretrain.trained(found, arguments.iterations, seed, TOLD)
                rows = [row for name in own for row in _judged(name, policy, arguments.data_dir)]
                tables.add(ROWS, [{"family": family, "seed": seed} | row for row in rows])
                print(f"without {family}, seed {seed}: done", flush=True)


def _family(name: str) -> str:
    """The family of a network, by its name or the name of its file.

    Raises:
        InputError: it has none here.
    """
    for family in FAMILIES:
        if Path(name).name.startswith(family):
            return family
    raise InputError(f"--teachers: {name} is of no family that is known here: {', '.join(FAMILIES)}")


def _judged(name: str, policy: proposal.Policy, data_dir: str | None) -> Iterator[dict[str, Any]]:
    """A row for each choice of a teacher's sites: what quintile and the policy's proposal score."""
    for prepared in pretrain.prepared(name, data_dir, ("test",)):
        problem = prepared.problem
        search, test = Evaluator(problem, cache_bytes=0), Evaluator(prepared.held_out["test"], cache_bytes=0)
        row = {"model": problem.network.model, "dataset": prepared.dataset.name, "sites": prepared.settings.sites,
               "teacher": prepared.teacher.about["sha256"][:12], "images": len(problem.labels)}  # fmt: skip
        found = problem.calibration.quintile, policy.propose(problem.calibration)
        for which, configuration in zip(CODES, found, strict=True):
            score = test.evaluate(configuration)
            row |= {f"{which}_return": search.evaluate(configuration).return_, f"{which}_test_kd": score.kd,
                    f"{which}_test_drop_points": score.drop_points, f"{which}_test_exact": score.mac_exact_all,
                    f"{which}_codes": [code for codes in configuration for code in codes]}  # fmt: skip
        yield row


def table(rows: pd.DataFrame) -> str:
    """Quintile and proposals side by side, means over seeds, a line for each problem."""
    heads = ("network that was left out", "seeds", "return: quintile", "proposed", "KD on test: quintile", "proposed",
             "drop on test: quintile", "proposed", "seeds better in return and in KD")  # fmt: skip
    lines = []
    for (model, dataset, sites), own in rows.groupby(["model", "dataset", "sites"]):
        better = (own["proposed_return"] > own["quintile_return"]) & (own["proposed_test_kd"] < own["quintile_test_kd"])
        shown = (("return", 3), ("test_kd", 4), ("test_drop_points", 2))
        told = (f"{own[f'{which}_{name}'].mean():.{digits}f}" for name, digits in shown for which in CODES)
        lines.append((f"{model}, {dataset}, {sites} sites", str(len(own)), *told, f"{better.sum()} of {len(own)}"))
    return markdown.table(heads, lines)


def tell(tables: Tables) -> None:
    """Prints the table of the rows that there are.

    Raises:
        InputError: there are none.
    """
    rows = tables.frame(ROWS)
    if rows.empty:
        raise InputError("there are no rows of policies: leave --draw out to make some")
    print(f"\n{table(rows)}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ends with status 2 if it is wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", type=lambda text: text.split(","), default=list(pretrain.SHIPPED), metavar="LIST",
                        help="shipped networks, and .int8.json files (default: all that are shipped)")  # fmt: skip
    parser.add_argument("--data-dir", metavar="DIR", help="image folder of those that were not trained on digits")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1")
    text = "how often a policy learns"
    parser.add_argument("--iterations", type=int, default=pretrain.Settings.iterations, metavar="N", help=text)
    parser.add_argument("--draw", action="store_true", help="the table of the rows that are there; no training")
    parser.add_argument(
        "--results", type=Path, default=bench_search.RESULTS, metavar="DIR", help="where rows are and go"
    )
    return bench_search.checked(parser, argv, ("seeds", "iterations"))


def main(argv: Sequence[str]) -> int:
    """Trains and judges what is asked for, then tells; returns the exit status."""
    return bench_search.carried_out(argv, parse, ([ROWS], KEY, __doc__), measure, tell)
