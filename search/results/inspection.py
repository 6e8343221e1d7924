"""Looks whether a run's folder holds what it should, before anything relies on it: it may be damaged, or edited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch

from approx_env.tap import HIGHEST_CODE
from search.objectives import OBJECTIVES
from search.results import store
from search.results.folder import Folder

SHORT = 60  # letters of a wrong value that a message shows


class Kind(NamedTuple):
    """What a value in a file of JSON must be."""

    words: str
    holds: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a folder's name", lambda value: isinstance(value, str) and 0 < len(value) <= 100 and "/" not in value)
WHOLE = Kind("a whole number", _whole)
NUMBER = Kind("a finite number", _number)
SHARE = Kind("a number in 0..1", lambda value: _number(value) and 0 <= value <= 1)
CODE = Kind("a whole number in 0..255", lambda value: _whole(value) and value <= 255)
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
SEEDS = Kind(
    "a list of whole numbers", lambda value: isinstance(value, list) and bool(value) and all(map(_whole, value))
)
MAPPINGS = Kind(
    "a list of mappings", lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value)
)
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value))

RUN = {
    "run": NAME,
    "schema_version": WHOLE,
    "arguments": {"model": TEXT, "algorithm": TEXT, "episodes": WHOLE, "seeds": SEEDS, "search_images": WHOLE},
    "dataset": TEXT,
    "teacher": MAPPING,
    "layers": MAPPING,
}
RENAMED = {"layers": "model", "batch_size": "calib_batch_size"}  # options that older runs name otherwise
COST = {"name": TEXT, "source": TEXT, "scope": TEXT, "zero_pj": NUMBER, "shared_pj": NUMBER, "exact_pj": NUMBER}
OPTIONAL = {
    "command": TEXTS,
    "cost": COST,
    "splits": MAPPING,
    "versions": MAPPING,
    "resumed": MAPPINGS,
    "share_of_all_macs": SHARE,
}
BEST = {
    "model": TEXT,
    "dataset": TEXT,
    "layers": MAPPING,
    "selection": {"trial": TEXT, "episode_id": TEXT, "search_return": NUMBER},
    "metrics": {
        "acc_teacher": SHARE,
        "acc_student": SHARE,
        "acc_drop": NUMBER,
        "validation": {"teacher": SHARE, "student": SHARE, "drop_points": NUMBER},
        "float_teacher": {"validation": SHARE, "test": SHARE},
    },
}
STUDENT_MEASURES = {
    name: NUMBER
    for name in (*store.MEASURES, "kd", "relative_energy", "mac_zero_all", "mac_shared_all", "mac_exact_all")
}
BEST_COST = {"table": TEXT, "relative_energy": NUMBER}  # older runs lack it


def run_json(folder: Folder) -> dict[str, Any]:
    """What run.json says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or from another version of this program.
    """
    about = _json(folder, store.RUN)
    _check(about, {"schema_version": WHOLE}, store.RUN)
    if about["schema_version"] != store.SCHEMA_VERSION:
        raise ValueError(f"schema {about['schema_version']}, and this tapsearch writes {store.SCHEMA_VERSION}")
    if isinstance(about.get("arguments"), dict):
        about["arguments"] = {RENAMED.get(name, name): value for name, value in about["arguments"].items()}
    _check(about, RUN | {name: kind for name, kind in OPTIONAL.items() if name in about}, store.RUN)
    for layer, said in about["layers"].items():
        _check(said, {"tmax": CODE}, f"{store.RUN}: layers.{layer}")
    for name, kind in (("rungs", SEEDS), ("budget_exact", SHARE)):
        if (value := about["arguments"].get(name)) is not None:
            _check({name: value}, {name: kind}, f"{store.RUN}: arguments")
    return about


def best_json(folder: Folder, about: Mapping[str, Any]) -> dict[str, Any]:
    """What best.json says; `about` is the run's run.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another run.
    """
    best = _json(folder, store.BEST)
    _check(best, BEST, store.BEST)
    if "cost" in best["metrics"]:
        _check(best["metrics"]["cost"], BEST_COST, f"{store.BEST}: metrics.cost")
    own = {"model": about["arguments"]["model"], "dataset": about["dataset"]}
    for name, value in own.items():
        if best[name] != value:
            raise ValueError(f"{store.BEST}: {name} is {_shown(best[name])}, and the run's is {_shown(value)}")
    if set(best["layers"]) != set(about["layers"]):
        raise ValueError(f"{store.BEST}: its layers are not those of {store.RUN}")
    for layer, codes in best["layers"].items():
        _check(codes, {f"{name}_code": CODE for name in store.CODE_FIELDS}, f"{store.BEST}: layers.{layer}")
    return best


def student_json(folder: Folder) -> dict[str, Any]:
    """What finetune.json says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    told = _json(folder, store.STUDENT_SUMMARY)
    _check(told, {"chosen": TEXT, "validation": MAPPING, "test": STUDENT_MEASURES}, store.STUDENT_SUMMARY)
    _check(told["validation"], dict.fromkeys(told["validation"], STUDENT_MEASURES), store.STUDENT_SUMMARY)
    curve = told.get("curve", [])
    _check({"curve": curve}, {"curve": MAPPINGS}, store.STUDENT_SUMMARY)
    for point in curve:
        _check(point, {"step": WHOLE, "drop_points": NUMBER, "kd": NUMBER}, f"{store.STUDENT_SUMMARY}: curve")
    return told


def check_table(table: pa.Table, expected: pa.Schema, file: str) -> None:
    """Raises ValueError unless a table has the columns that are expected of a file."""
    try:
        _check_columns(table, expected)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def faults(folder: Folder, about: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each part, and with each search's state, that is damaged or of another run, by file.

    Raises:
        OSError: the folder cannot be read.
    """
    found = {}
    for name in store.part_names(folder):
        try:
            check_rows(store.read_part(folder, name), about)
        except ValueError as error:  # pyarrow's own are, too
            found[f"{store.EPISODES}/{name}"] = _first_line(error)
        except OSError as error:
            if error.errno is not None:  # without a number it is pyarrow's word for a broken file
                raise
            found[f"{store.EPISODES}/{name}"] = _first_line(error)
    for name in folder.names():
        if name.endswith(store.STATE_SUFFIX) and name != store.STUDENT_ARRAYS:
            try:
                _check_state(folder.read(name), about)
            except (ValueError, safetensors.SafetensorError) as error:
                found[name] = _first_line(error)
    return found


def chosen(best: Mapping[str, Any], scored: pd.DataFrame) -> pd.Series:
    """The row of the configuration that best.json names.

    Args:
        scored: all rows of the run, from `store.read`.

    Raises:
        ValueError: there is none, or it has other codes.
    """
    rows = scored[scored["episode_id"] == best["selection"]["episode_id"]]
    if rows.empty:
        raise ValueError(f"{store.BEST} names {_shown(best['selection']['episode_id'])}, which {store.EPISODES} lacks")
    row = rows.iloc[0]
    for layer, codes in best["layers"].items():
        for name in store.CODE_FIELDS:
            if codes[f"{name}_code"] != row[f"{layer}_{name}"]:
                raise ValueError(f"{store.BEST}: layers.{layer}.{name}_code is not that of its row in {store.EPISODES}")
    return row


def check_top(folder: Folder, about: Mapping[str, Any]) -> None:
    """Raises ValueError unless top.parquet has the columns of validated rows."""
    try:
        table = pq.read_table(pa.BufferReader(folder.read(store.TOP)))
        _check_columns(table, _expected(table, store.validated_schema(list(about["layers"])), about))
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{store.TOP}: {_first_line(error)}") from error


def check_baselines(folder: Folder, about: Mapping[str, Any]) -> None:
    """Raises ValueError unless baselines.parquet is the run's; one from before there was a cost model has none."""
    if "cost" not in about and not folder.exists(store.BASELINES):
        return
    _check_results(folder, about, store.BASELINES, store.baselines_schema(list(about["layers"])))


def check_front(folder: Folder, about: Mapping[str, Any]) -> None:
    """Raises ValueError unless pareto.parquet is the run's; a run with another objective has none."""
    objective = OBJECTIVES.get(about["arguments"].get("objective"))
    if objective and objective.front:
        _check_results(folder, about, store.PARETO, store.pareto_schema(list(about["layers"])))


def _check_results(folder: Folder, about: Mapping[str, Any], file: str, expected: pa.Schema) -> None:
    try:
        table = pq.read_table(pa.BufferReader(folder.read(file)))
        _check_columns(table, expected)
        _check_cells(table, expected)
        own = {"run": about["run"], "model": about["arguments"]["model"], "dataset": about["dataset"]}
        for name, value in own.items():
            if table[name].unique().to_pylist() != [value]:
                raise ValueError(f"{name} is not {_shown(value)}")
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: {_first_line(error)}") from error


def check_rows(table: pa.Table, about: Mapping[str, Any]) -> None:
    """Raises ValueError unless every row of a part is one that the run `about` may have written."""
    expected = _expected(table, store.schema(list(about["layers"])), about)
    _check_columns(table, expected)
    _check_cells(table, expected)
    for name, allowed in _allowed(about):
        others = [value for value in pc.unique(table[name]).to_pylist() if value not in allowed]
        if others:
            raise ValueError(f"{name} is {_shown(others[0])}, and this run has {', '.join(map(_shown, allowed))}")
    rows = table.select(["trial", "algorithm", "seed", "episode_id", "episode", "search_images"]).to_pandas()
    _check_names(rows, about["arguments"])
    for layer in about["layers"]:
        _check_codes({name: table[f"{layer}_{name}"].to_numpy() for name in store.CODE_FIELDS}, layer)


def _allowed(about: Mapping[str, Any]) -> Iterator[tuple[str, list]]:
    """Columns that hold what the run's settings say, and the values that each may have."""
    arguments = about["arguments"]
    yield "run", [about["run"]]
    yield "schema_version", [about["schema_version"]]
    yield "model", [arguments["model"]]
    yield "dataset", [about["dataset"]]
    yield "algorithm", [arguments["algorithm"]]
    yield "seed", arguments["seeds"]
    yield "search_images", arguments.get("rungs") or [arguments["search_images"]]
    if not arguments.get("search_tmax"):
        for layer, said in about["layers"].items():
            yield f"{layer}_tmax", [said["tmax"]]


def _check_names(rows: pd.DataFrame, arguments: Mapping[str, Any]) -> None:
    if not rows["episode"].between(0, arguments["episodes"] - 1).all():
        raise ValueError(f"episodes are not in 0..{arguments['episodes'] - 1}")
    trials = rows["algorithm"] + "-seed" + rows["seed"].astype(str)
    names = trials + "-" + rows["episode"].astype(str)
    promoted = rows["search_images"] != arguments["search_images"]
    names = names.where(~promoted, names + "@" + rows["search_images"].astype(str))
    for column, right in (("trial", trials), ("episode_id", names)):
        if (wrong := rows[column] != right).any():
            raise ValueError(f"{column} is {_shown(rows[column][wrong].iloc[0])}, and {right[wrong].iloc[0]} is right")


def _check_codes(codes: Mapping[str, np.ndarray], layer: str) -> None:
    t1, v1, t2, v2, tmax = (codes[name] for name in store.CODE_FIELDS)
    if not ((t1 >= 1) & (t1 < v1) & (v1 < t2) & (t2 < v2) & (v2 <= tmax) & (tmax <= HIGHEST_CODE)).all():
        raise ValueError(f"codes of {layer} do not satisfy 1 <= t1 < v1 < t2 < v2 <= tmax <= {HIGHEST_CODE}")


def _expected(table: pa.Table, columns: pa.Schema, about: Mapping[str, Any]) -> pa.Schema:
    """The columns that a table must have: of an older run those of its time."""
    there = set(table.column_names)
    if not there & set(store.COSTS):
        columns = store.without(columns, store.COSTS)
    if not there & set(store.BUDGET) and "objective" not in about["arguments"]:
        columns = store.without(columns, store.BUDGET)
    if not there & set(store.FORWARDS):
        columns = store.without(columns, store.FORWARDS)
    return columns


def _check_cells(table: pa.Table, expected: pa.Schema) -> None:
    for field in expected:
        column = table[field.name]
        if column.null_count:
            raise ValueError(f"cells of {field.name} are empty")
        if pa.types.is_floating(field.type) and not pc.all(pc.is_finite(column)).as_py() and len(table):
            raise ValueError(f"cells of {field.name} are no finite numbers")


def _check_columns(table: pa.Table, expected: pa.Schema) -> None:
    if table.column_names != expected.names and sorted(table.column_names) != sorted(expected.names):
        lacking = [name for name in expected.names if name not in table.column_names]
        more = [name for name in table.column_names if name not in expected.names]
        what = f"lacks column {_shown(lacking[0])}" if lacking else f"has a column {_shown((more or ['twice'])[0])}"
        raise ValueError(f"it {what}")
    for field in expected:
        if table.schema.field(field.name).type != field.type:
            raise ValueError(f"column {field.name} is {table.schema.field(field.name).type}, and {field.type} is right")


def _check_state(data: bytes, about: Mapping[str, Any]) -> None:
    """Raises ValueError unless this is a state of a search that `ppo` wrote."""
    state = safetensors.torch.load(data)
    done = state.pop("episodes", None)
    if done is None or done.shape != () or done.dtype != torch.int64:
        raise ValueError("it does not say how many episodes are done")
    if not 0 <= int(done) <= about["arguments"]["episodes"]:
        raise ValueError(f"{int(done)} episodes are done, and the run has {about['arguments']['episodes']}")
    if "best" not in state or state["best"].shape != (2,) or state["best"].dtype != torch.float64:
        raise ValueError("it does not say how good the best episode was")
    for name, value in state.items():
        if name != "best" and not name.startswith(("module.", "adam.")):
            raise ValueError(f"{_shown(name)} is no part of it")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite")


def _json(folder: Folder, name: str) -> Any:
    try:
        return folder.read_json(name)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error


def _check(value: Any, shape: Kind | Mapping[str, Any], where: str) -> None:
    """Raises ValueError, naming the place, unless a value of JSON has a shape: a kind, or shapes by key."""
    kind = shape if isinstance(shape, Kind) else MAPPING
    if not kind.holds(value):
        raise ValueError(f"{where} must be {kind.words}, got {_shown(value)}")
    if isinstance(shape, Kind):
        return
    for key, inner in shape.items():
        if key not in value:
            raise ValueError(f"{where} lacks {key!r}")
        _check(value[key], inner, f"{where}: {key}" if where.endswith(".json") else f"{where}.{key}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else text[:SHORT] + "..."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
