"""A run's folder: every scored configuration as a row of Parquet, in atomic, immutable parts."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from approx_env.cost import KINDS
from approx_env.tap import CODES

SCHEMA_VERSION = 1
EPISODES = "episodes"
TOP = "top.parquet"
CODE_FIELDS = (*CODES, "tmax")


def schema(layers: Sequence[str]) -> pa.Schema:
    """The columns of a row, with their meaning as Parquet metadata; see results/README.md."""
    columns = [
        ("schema_version", pa.int16()),
        ("run", pa.string()),
        ("trial", pa.string()),
        ("algorithm", pa.string()),
        ("seed", pa.int64()),
        ("episode_id", pa.string()),
        ("episode", pa.int64()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("search_images", pa.int64()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("accuracy", pa.float64()),
        ("soft_accuracy", pa.float64()),
        ("drop_points", pa.float64()),
        ("kd", pa.float64()),
        ("at", pa.float64()),
        ("return", pa.float64()),
        *((f"mac_{kind}", pa.float64()) for kind in KINDS),
        *((f"{layer}_{field}", pa.int16()) for layer in layers for field in CODE_FIELDS),
        *((f"{layer}_mac_{kind}", pa.float64()) for layer in layers for kind in KINDS),
    ]
    return pa.schema(columns)


def validated_schema(layers: Sequence[str]) -> pa.Schema:
    """The columns of `top.parquet` once its rows are validated."""
    columns = schema(layers)
    for name in ("validation_accuracy", "validation_drop_points"):
        columns = columns.append(pa.field(name, pa.float64()))
    return columns


def configuration_columns(layers: Sequence[str], codes: Sequence[Sequence[int]], tmax: Sequence[int]) -> dict[str, int]:
    """Codes and tmax of every layer as a row's columns."""
    return {
        f"{layer}_{field}": int(value)
        for layer, four, limit in zip(layers, codes, tmax, strict=True)
        for field, value in zip(CODE_FIELDS, (*four, limit), strict=True)
    }


def score_columns(layers: Sequence[str], outcome: Mapping[str, Any]) -> dict[str, float]:
    """What a configuration scored (the environment's last `info`) as a row's columns."""
    columns = {
        name: float(outcome[name]) for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at", "return")
    }
    columns |= {f"mac_{kind}": float(share) for kind, share in zip(KINDS, outcome["shares"], strict=True)}
    for layer, shares in zip(layers, outcome["layer_shares"], strict=True):
        columns |= {f"{layer}_mac_{kind}": float(share) for kind, share in zip(KINDS, shares, strict=True)}
    return columns


def codes_of(row: Mapping[str, Any], layers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The configuration that a row holds."""
    return tuple(tuple(int(row[f"{layer}_{name}"]) for name in CODES) for layer in layers)


def write_part(folder: Path, rows: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> Path:
    """Writes rows as one new part of `folder/episodes`; a reader sees all of it or nothing."""
    path = folder / EPISODES / f"part-{uuid.uuid4().hex}.parquet"
    write_table(path, rows, schema(layers))
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: pa.Schema) -> None:
    """Writes rows to one Parquet file, atomically."""
    write_arrow(path, pa.Table.from_pylist(list(rows), schema=columns))


def write_arrow(path: Path, table: pa.Table) -> None:
    """Writes a table to one Parquet file, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Parts are small: statistics and dictionaries would be a third of them.
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_statistics=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a write that failed


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def read_rows(folder: Path) -> Iterable[dict[str, Any]]:
    """Yields every row that the parts of `folder/episodes` hold."""
    for path in sorted((folder / EPISODES).glob("part-*.parquet")):
        yield from pq.read_table(path).to_pylist()


def read(folder: str | os.PathLike) -> pd.DataFrame:
    """Every configuration that a run scored, as a data frame."""
    return pd.read_parquet(Path(folder) / EPISODES)
