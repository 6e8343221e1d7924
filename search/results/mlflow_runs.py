"""A run in MLflow, written by its own client: an MLflow run with the options, and one nested in it for each curve."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from approx_env.errors import InputError
from search.results import summary
from search.results.curves import Point, of_run

EXPERIMENT = "tapsearch"
RUN_TAG = "tapsearch.run"
BATCH = 1000  # metrics that MLflow takes at once
LONGEST_VALUE = 500  # letters of a parameter that every MLflow server takes


def export(place: str, tracking: str) -> int:
    """Writes a run to an MLflow server or database: a run with its options, and one nested in it for each curve.

    What was written is deleted again if something fails on the way.

    Returns:
        How many points there are.

    Raises:
        InputError: MLflow is not installed or cannot write there, the run is there, or it cannot be read.
    """
    try:
        mlflow = importlib.import_module("mlflow")
    except ImportError as error:
        raise InputError("export-mlflow needs MLflow: pip install -e '.[mlflow]'") from error
    about, found = of_run(place)
    name, told = about["run"], summary.summary(place)
    try:
        client = mlflow.MlflowClient(tracking_uri=tracking)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        if client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{_escaped(name)}'"):
            raise InputError(f"--tracking {tracking} has run {name} in experiment {EXPERIMENT}: delete it there first")
        with _runs(client, experiment) as begin:
            parent = begin(name, {RUN_TAG: name})
            for option, value in about["arguments"].items():
                client.log_param(parent, option, str(value)[:LONGEST_VALUE])
            for measure, value in told.items():
                if isinstance(value, int | float):
                    client.log_metric(parent, measure, value)
            return sum(_log(client, mlflow.entities.Metric, begin(curve, {"mlflow.parentRunId": parent}), points)
                       for curve, points in found)  # fmt: skip
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--tracking {tracking}: MLflow cannot write there ({reason}): give sqlite:///FILE.db or a server's address"
        ) from error


@contextmanager
def _runs(client: Any, experiment: str) -> Iterator[Callable[[str, dict[str, str]], str]]:
    """Gives what begins a run of MLflow's, and returns its id. The block's end finishes all; a failure deletes them."""
    begun: list[str] = []

    def begin(name: str, tags: dict[str, str]) -> str:
        begun.append(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
        return begun[-1]

    try:
        yield begin
    except BaseException:
        for run in begun:
            with suppress(Exception):  # the failure itself is told
                client.delete_run(run)
        raise
    for run in begun:
        client.set_terminated(run)


def _log(client: Any, metric: type, run: str, points: Sequence[Point]) -> int:
    """Writes points as metrics of a run of MLflow's; returns how many points there are."""
    metrics = [metric(name, value, round(1000 * point.seconds), point.episode)
               for point in points for name, value in point.scores.items()]  # fmt: skip
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics[start : start + BATCH])
    return len(points)


def _escaped(text: str) -> str:
    """A text between apostrophes in a filter of MLflow's."""
    return text.replace("'", "\\'")
