"""How fast are rows written, and how fast are they found again among a million?

Question: how many scored configurations a second can a run write, as parts alone and through the sink, which also
counts and ranks them? How long do the queries of results/README.md take over a million rows?

Method: rows of SqueezeNet with random codes and scores. A part holds 32 rows, one PPO iteration, or 1,000. The sink is
driven in this process, without Ray: 32 rows are sent, flushed and waited for. The million rows lie in 500 parts of
2,000, as `store.arrow_parquet` makes them; DuckDB uses one thread. Each is done once in
each repetition.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from approx_env import tap
from approx_env.int8.cost import KINDS
from benchmarks import record, timing, workload
from search.results import sink, store
from search.results.folder import Folder

AN_ITERATION, MANY = 32, 1000
FLUSHES = 20
MILLION, PART_ROWS = 1_000_000, 2_000
QUICK_MILLION = 20_000
REPETITIONS, QUICK_REPETITIONS = 5, 1
TOP = 30


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `store.parquet`; no claim depends on it."""
    record.announce("store", __doc__)
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    network = workload.network("squeezenet")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tb-") as temporary:
        for what, count, run in _writers(Folder(temporary), network.layers):
            for k, seconds in enumerate(timing.side_by_side({what: run}, repetitions)[what]):
                rows.append({"what": what, "rows": count, "repetition": k, "seconds": seconds})
    with tempfile.TemporaryDirectory(prefix="tb-") as temporary:
        total = QUICK_MILLION if quick else MILLION
        size = write_store(Folder(temporary), network.layers, total)
        for what, times in timing.side_by_side(_queries(Path(temporary)), repetitions).items():
            for k, seconds in enumerate(times):
                rows.append({"what": what, "rows": total, "repetition": k, "seconds": seconds, "store_bytes": size})
    frame = pd.DataFrame(rows)
    for (what, count), seconds in frame.groupby(["what", "rows"], sort=False)["seconds"].median().items():
        print(f"{what}, {count} rows: {seconds:.3f} s, {count / seconds:.0f} rows/s", flush=True)
    print(f"a row takes {size / total:.0f} bytes")
    record.write(folder, "store", __doc__, rows)
    return {}


def write_store(folder: Folder, layers: tuple[str, ...], count: int) -> int:
    """Writes `count` random rows as parts of 2,000; returns their size in bytes."""
    generator, columns, size = np.random.default_rng(0), store.schema(layers), 0
    (folder / store.EPISODES).create()
    for first in range(0, count, PART_ROWS):
        part = store.arrow_parquet(_random_table(columns, first, min(PART_ROWS, count - first), generator))
        (folder / store.EPISODES).write(f"part-{first:07d}.parquet", part)
        size += len(part)
    return size


def _random_table(columns: pa.Schema, first: int, count: int, generator: np.random.Generator) -> pa.Table:
    episodes = np.arange(first, first + count)
    known = {
        "run": np.full(count, "benchmark"), "model": np.full(count, "squeezenet"), "dataset": np.full(count, "digits"),
        "trial": np.char.add("ppo-seed", (episodes % 10).astype(str)), "algorithm": np.full(count, "ppo"),
        "episode_id": episodes.astype(str), "episode": episodes, "seed": episodes % 10,
        "time": 1_700_000_000_000 + 100 * episodes,
    }  # fmt: skip
    arrays = []
    for field in columns:
        values = known.get(field.name)
        if values is None:
            whole = pa.types.is_integer(field.type)
            values = generator.integers(1, 256, count) if whole else generator.random(count)
        arrays.append(pa.array(values).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=columns)


def _queries(folder: Path) -> dict[str, Callable[[], object]]:
    """What a person asks of a run, by the library that answers."""
    episodes = folder / store.EPISODES
    database = duckdb.connect(config={"threads": 1})
    scan = f"from read_parquet('{episodes}/*.parquet')"
    columns = ["trial", "episode", "return", "drop_points", "mac_zero"]

    def ask(query: str) -> pa.Table:
        return database.sql(query).to_arrow_table()

    return {
        "duckdb: best by trial": lambda: ask(f'select trial, max("return") {scan} group by trial'),
        "duckdb: top 30": lambda: ask(f'select * {scan} order by "return" desc limit {TOP}'),
        "pandas: top 30": lambda: pd.read_parquet(episodes, columns=columns).nlargest(TOP, "return"),
    }


def _writers(folder: Folder, layers: tuple[str, ...]) -> list[tuple[str, int, Callable[[], object]]]:
    """Ways to write: what, how many rows, and how."""
    (folder / store.EPISODES).create()
    tmax = (255,) * len(layers)
    generator = np.random.default_rng(0)
    columns = store.schema(layers)
    few, many = (_random_table(columns, 0, count, generator).to_pylist() for count in (AN_ITERATION, MANY))
    info = sink.RunInfo("benchmark", "squeezenet", "digits", layers, tmax, MANY)
    return [
        ("parts", AN_ITERATION, lambda: store.Part(folder, layers).write(few)),
        ("parts", MANY, lambda: store.Part(folder, layers).write(many)),
        ("sink", AN_ITERATION * FLUSHES, lambda: asyncio.run(_send_through_sink(info, generator))),
    ]


async def _send_through_sink(info: sink.RunInfo, generator: np.random.Generator) -> None:
    """A new sink takes rows as env runners send them."""
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        (Folder(folder) / store.EPISODES).create()
        actor = sink._Sink(Folder(folder), info, b"", TOP)
        for _ in range(FLUSHES):
            answers = [asyncio.ensure_future(actor.add(_message(info, generator))) for _ in range(AN_ITERATION)]
            await asyncio.sleep(0)
            await actor.flush()
            await asyncio.gather(*answers)


def _message(info: sink.RunInfo, generator: np.random.Generator) -> dict[str, Any]:
    """One finished configuration as a recorder sends it."""
    shares = generator.random((len(info.layers), len(KINDS)))
    outcome = dict(
        zip(("accuracy", "soft_accuracy", "drop_points", "kd", "at", "return"), generator.random(6), strict=True)
    )
    names = ("zero_natural", "covered", "relative_energy_sites", "relative_energy", "mac_exact_all")
    costs = dict.fromkeys(names, generator.random())
    return {
        "trial": "ppo-seed0", "algorithm": "ppo", "seed": 0, "episode_id": uuid.uuid4().hex, "episode": 0,
        "time": 1_700_000_000_000, "codes": [tap.random_codes(limit, generator) for limit in info.tmax],
        "outcome": outcome | costs | {"shares": shares.mean(0), "layer_shares": shares},
    }  # fmt: skip
