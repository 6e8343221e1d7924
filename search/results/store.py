"""A run's folder: every scored configuration as a row of Parquet, in parts that are replaced whole."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from approx_env.int8.cost import KINDS
from approx_env.tap import WITH_TMAX as CODE_FIELDS
from search.results.folder import Folder

SCHEMA_VERSION = 1
EPISODES = "episodes"
ROWS_A_PART = 1000  # a part is written anew with each flush: more would take longer, fewer leave more files
RUN, TOP, BEST, BASELINES = "run.json", "top.parquet", "best.json", "baselines.parquet"
PARETO = "pareto.parquet"  # of a run whose objective is a front
HISTOGRAMS = "histograms.parquet"  # of calibration
CLASSES, CHANGED = "classes.parquet", "changed.parquet"  # what the chosen configuration changes
ATTENTION = "attention.parquet"  # where teacher and student look
STUDENT, STUDENT_ARRAYS = "student.int8.json", "student.int8.safetensors"  # of `search.finetune`
STUDENT_SUMMARY = "finetune.json"  # what it measured
TORN_READS, TORN_SECONDS = 3, 0.5  # an object that is replaced while it is read comes torn: then it is read again
STATE_SUFFIX = ".safetensors"  # of the file that a PPO search goes on from
COSTS = ("mac_zero_natural", "mac_zero_natural_all", "relative_energy_sites", "relative_energy")  # older runs lack them
BUDGET = ("mac_exact_all", "validation_mac_exact_all")  # so they do these
FORWARDS = ("layer_forwards",)  # nor had they this
MEASURES = ("accuracy", "drop_points", "drop_error_points")  # of a split, in baselines and fronts
SPLITS = ("validation", "test")
CHOSEN = "chosen"  # what baselines.parquet calls the configuration that the run chose


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
        *((name, pa.float64()) for name in COSTS),
        ("mac_exact_all", pa.float64()),
        *((name, pa.int32()) for name in FORWARDS),
    ]
    return pa.schema(columns)


def without(columns: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The columns as runs had them before there were those of these names."""
    return pa.schema([field for field in columns if field.name not in names])


def validated_schema(layers: Sequence[str]) -> pa.Schema:
    """The columns of `top.parquet` once its rows are validated."""
    columns = schema(layers)
    for name in ("validation_accuracy", "validation_drop_points", "validation_mac_exact_all"):
        columns = columns.append(pa.field(name, pa.float64()))
    return columns


def _measured() -> list[tuple[str, pa.DataType]]:
    """Columns of what is shown at the end of a run: drops, shares and energies."""
    return [
        *((f"{split}_{name}", pa.float64()) for split in SPLITS for name in MEASURES),
        *((f"mac_{kind}{end}", pa.float64()) for end in ("", "_all") for kind in ("zero", "shared", "exact")),
        ("relative_energy_sites", pa.float64()),
        ("relative_energy", pa.float64()),
        ("energy_table", pa.string()),
    ]


def baselines_schema(layers: Sequence[str]) -> pa.Schema:
    """The columns of `baselines.parquet`; see results/README.md."""
    texts = ("run", "model", "dataset", "baseline")
    limits = ((f"{layer}_limit", pa.int16()) for layer in layers)
    return pa.schema([("schema_version", pa.int16()), *((name, pa.string()) for name in texts), *_measured(), *limits])


def pareto_schema(layers: Sequence[str]) -> pa.Schema:
    """The columns of `pareto.parquet`; see results/README.md."""
    columns = [
        ("schema_version", pa.int16()),
        *((name, pa.string()) for name in ("run", "model", "dataset", "trial", "episode_id")),
        ("return", pa.float64()),
        ("chosen", pa.bool_()),
        *_measured(),
        ("validation_mac_exact_all", pa.float64()),
        *((f"{layer}_{field}", pa.int16()) for layer in layers for field in CODE_FIELDS),
    ]
    return pa.schema(columns)


HISTOGRAM_COLUMNS = pa.schema([("layer", pa.string()), ("code", pa.int16()), ("count", pa.int64())])
CLASS_COLUMNS = pa.schema(
    [
        ("class", pa.string()),
        ("images", pa.int64()),
        ("acc_teacher", pa.float64()),
        ("acc_student", pa.float64()),
        ("change_points", pa.float64()),
    ]
)
CHANGED_COLUMNS = pa.schema(
    [
        ("position", pa.int64()),
        ("label", pa.string()),
        ("teacher", pa.string()),
        ("student", pa.string()),
        ("png", pa.binary()),
    ]
)
ATTENTION_COLUMNS = pa.schema(
    [
        ("position", pa.int64()),
        *((name, pa.string()) for name in ("label", "layer")),
        *((name, pa.binary()) for name in ("png", "teacher", "student")),
    ]
)


def configuration_columns(layers: Sequence[str], codes: Sequence[Sequence[int]], tmax: Sequence[int]) -> dict[str, int]:
    """Codes and tmax of every layer as a row's columns; `tmax` is that of layers whose codes come without."""
    return {
        f"{layer}_{field}": int(value)
        for layer, own, limit in zip(layers, codes, tmax, strict=True)
        for field, value in zip(CODE_FIELDS, (*own, limit)[: max(len(own), len(CODE_FIELDS))], strict=True)
    }


def score_columns(layers: Sequence[str], outcome: Mapping[str, Any]) -> dict[str, float]:
    """What a configuration scored (the environment's last `info`) as a row's columns."""
    columns = {
        name: float(outcome[name]) for name in ("accuracy", "soft_accuracy", "drop_points", "kd", "at", "return")
    }
    columns |= {f"mac_{kind}": float(share) for kind, share in zip(KINDS, outcome["shares"], strict=True)}
    for layer, shares in zip(layers, outcome["layer_shares"], strict=True):
        columns |= {f"{layer}_mac_{kind}": float(share) for kind, share in zip(KINDS, shares, strict=True)}
    natural = float(outcome["zero_natural"])
    energies = float(outcome["relative_energy_sites"]), float(outcome["relative_energy"])
    columns |= dict(zip(COSTS, (natural, natural * float(outcome["covered"]), *energies), strict=True))
    return columns | {"mac_exact_all": float(outcome["mac_exact_all"])}


def codes_of(row: Mapping[str, Any], layers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The configuration that a row holds, with each layer's tmax as its fifth code."""
    return tuple(tuple(int(row[f"{layer}_{name}"]) for name in CODE_FIELDS) for layer in layers)


class Part:
    """The part that this process writes into: written anew with every row that comes, until it is full.

    There is nothing to merge later, nor to delete: each row is in one part from the start, and each part always has
    the same name. So someone who lists the parts and then reads them finds every row once, at any moment. No other
    process writes under the name: one that hangs and wakes up cannot undo what its successor wrote.

    Args:
        folder: the run's; its `episodes` must be there.
        layers: whose columns rows have.
    """

    def __init__(self, folder: Folder, layers: Sequence[str]):
        self._folder, self._schema = folder / EPISODES, schema(layers)
        self._begin()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows, with those that the part holds; a reader sees all of them or none.

        Raises:
            OSError: they cannot be written; the part is as before, or holds them nevertheless.
        """
        table = pa.concat_tables([self._rows, pa.Table.from_pylist(list(rows), schema=self._schema)]).combine_chunks()
        self._folder.write(self._name, arrow_parquet(table))
        self._rows = table
        if len(table) >= ROWS_A_PART:
            self._begin()

    def _begin(self) -> None:
        self._name, self._rows = f"part-{uuid.uuid4().hex}.parquet", self._schema.empty_table()


def parquet(rows: Sequence[Mapping[str, Any]], columns: pa.Schema) -> bytes:
    """Rows as the bytes of a Parquet file."""
    return arrow_parquet(pa.Table.from_pylist(list(rows), schema=columns))


def arrow_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    # Parts are small: statistics and dictionaries would be a third of them.
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    return sink.getvalue().to_pybytes()


def read_rows(folder: Folder) -> list[dict[str, Any]]:
    """Every row that the parts of `folder/episodes` hold, once: of two drivers each may have written it."""
    return list({row["episode_id"]: row for table in _parts(folder) for row in table.to_pylist()}.values())


def read(folder: str | os.PathLike | Folder) -> pd.DataFrame:
    """Every configuration that a run scored, as a data frame; as `read_rows`.

    Raises:
        FileNotFoundError: there is none.
    """
    parts = list(_parts(folder if isinstance(folder, Folder) else Folder(folder)))
    if not parts:
        raise FileNotFoundError(f"{folder} has no rows in {EPISODES}/")
    whole = pa.concat_tables(parts, promote_options="default")  # columns are joined by name, in whatever order
    return whole.to_pandas().drop_duplicates("episode_id", keep="last", ignore_index=True)


def part_names(folder: Folder) -> list[str]:
    """Names of the parts in `folder/episodes`."""
    return [name for name in (folder / EPISODES).names() if name.startswith("part-") and name.endswith(".parquet")]


def read_part(folder: Folder, name: str) -> pa.Table:
    """What a part holds.

    Raises:
        ValueError: it is damaged.
    """
    return read_table(folder, f"{EPISODES}/{name}")


def read_table(folder: Folder, name: str) -> pa.Table:
    """What a Parquet file holds, which may be replaced meanwhile.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    for left in reversed(range(1 if folder.local else TORN_READS)):
        try:
            return pq.read_table(pa.BufferReader(folder.read(name)))
        except (ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError) or not left:
                raise
        time.sleep(TORN_SECONDS)


def _parts(folder: Folder) -> Iterable[pa.Table]:
    for name in part_names(folder):
        yield read_part(folder, name)
