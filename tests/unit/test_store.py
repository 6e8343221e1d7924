"""A run's folder: parts, columns, and that people's tools read them."""

import datetime
import threading

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search.results import store
from search.results.folder import Folder

LAYERS = ("conv1", "fire2")
CODES = ((7, 14, 21, 28), (1, 2, 3, 4))
TMAX = (35, 255)
OUTCOME = {
    "accuracy": 0.75,
    "soft_accuracy": 0.5,
    "drop_points": 1.5,
    "kd": 0.125,
    "at": 0.25,
    "return": 0.375,
    "shares": [0.1, 0.2, 0.3, 0.4],
    "layer_shares": [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]],
    "zero_natural": 0.25,
    "covered": 0.5,
    "relative_energy_sites": 0.375,
    "relative_energy": 0.6875,
    "mac_exact_all": 0.7,
}
TIME = datetime.datetime(2026, 11, 22, 4, 30, tzinfo=datetime.UTC)


def make_row(episode: int) -> dict:
    return {
        "schema_version": store.SCHEMA_VERSION,
        "run": "r",
        "trial": "random-seed3",
        "algorithm": "random",
        "seed": 3,
        "episode_id": f"id{episode}",
        "episode": episode,
        "model": "squeezenet",
        "dataset": "digits",
        "search_images": 32,
        "time": TIME,
        "layer_forwards": 2,
        **store.configuration_columns(LAYERS, CODES, TMAX),
        **store.score_columns(LAYERS, OUTCOME),
    }


@pytest.fixture
def folder(tmp_path):
    """A run of five rows in two parts."""
    (Folder(tmp_path) / store.EPISODES).create()
    for episodes in (range(3), range(3, 5)):
        store.Part(Folder(tmp_path), LAYERS).write([make_row(k) for k in episodes])
    return tmp_path


def test_rows_come_back_as_they_were_written(folder):
    rows = sorted(store.read_rows(Folder(folder)), key=lambda row: row["episode"])
    assert rows == [make_row(k) for k in range(5)]


def test_every_column_is_written_and_no_other():
    assert set(store.schema(LAYERS).names) == set(make_row(0))


def test_the_schema_has_all_that_a_row_must_tell():
    names = set(store.schema(LAYERS).names)
    assert names >= {"run", "trial", "algorithm", "seed", "episode_id", "episode", "model", "dataset", "time"}
    assert names >= {"accuracy", "soft_accuracy", "drop_points", "kd", "at", "return", "schema_version"}
    kinds = ("zero", "v1", "v2", "exact")
    assert names >= {f"{start}mac_{kind}" for start in ("", "conv1_", "fire2_") for kind in kinds}
    assert names >= {f"{layer}_{code}" for layer in LAYERS for code in ("t1", "v1", "t2", "v2", "tmax")}


def test_what_came_later_comes_last_so_that_older_columns_stay_where_they_were():
    columns = store.schema(LAYERS)
    later = ["mac_exact_all", *store.FORWARDS]
    assert columns.names[-6:] == [*store.COSTS, *later]
    assert store.without(columns, store.COSTS).names == [*columns.names[:-6], *later]
    assert [make_row(0)[name] for name in store.COSTS] == [0.25, 0.125, 0.375, 0.6875]  # natural zeros of all: x 0.5


def test_rows_of_before_and_after_the_cost_model_are_read_together(folder):
    """As an older run that was resumed leaves them."""
    added = (*store.COSTS, *store.BUDGET, *store.FORWARDS)
    older = [{name: value for name, value in make_row(7).items() if name not in added}]
    data = store.parquet(older, store.without(store.schema(LAYERS), added))
    (folder / store.EPISODES / "part-0.parquet").write_bytes(data)
    rows = {row["episode"]: row for row in store.read_rows(Folder(folder))}
    assert rows[7] == older[0] and rows[4] == make_row(4)
    frame = store.read(folder).set_index("episode")
    assert frame["relative_energy"].isna().to_dict() == {k: k == 7 for k in (0, 1, 2, 3, 4, 7)}
    top = store.parquet([rows[7], rows[4]], store.schema(LAYERS))  # what the sink writes of them
    assert pq.read_table(pa.BufferReader(top))["relative_energy"].to_pylist() == [None, 0.6875]


def test_validated_rows_have_three_columns_more():
    more = set(store.validated_schema(LAYERS).names) - set(store.schema(LAYERS).names)
    assert more == {"validation_accuracy", "validation_drop_points", "validation_mac_exact_all"}


def test_columns_of_a_configuration_by_hand():
    columns = store.configuration_columns(("a", "b"), [(1, 2, 3, 4), (5, 6, 7, 8)], (15, 16))
    assert columns == {"a_t1": 1, "a_v1": 2, "a_t2": 3, "a_v2": 4, "a_tmax": 15,
                       "b_t1": 5, "b_v1": 6, "b_t2": 7, "b_v2": 8, "b_tmax": 16}  # fmt: skip


def test_a_configuration_s_own_tmax_goes_before_the_layer_s():
    columns = store.configuration_columns(("a", "b"), [(1, 2, 3, 4, 9), (5, 6, 7, 8, 255)], (15, 16))
    assert (columns["a_tmax"], columns["a_v2"], columns["b_tmax"], len(columns)) == (9, 4, 255, 10)


def test_codes_of_a_row_are_its_configuration_with_tmax():
    assert store.codes_of(make_row(0), LAYERS) == ((7, 14, 21, 28, 35), (1, 2, 3, 4, 255))


@pytest.mark.parametrize("codes", [CODES[:1], [(1, 2, 3)] * 2, [(1, 2, 3, 4, 5, 6)] * 2])
def test_codes_that_do_not_fit_the_layers_are_refused(codes):
    with pytest.raises(ValueError):
        store.configuration_columns(LAYERS, codes, TMAX)


def test_parts_have_names_of_their_own_and_leave_no_temporary_file(folder):
    names = sorted(path.name for path in (folder / store.EPISODES).iterdir())
    assert len(names) == len(set(names)) == 2
    assert all(name.startswith("part-") and name.endswith(".parquet") for name in names)


def test_a_part_takes_rows_until_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_A_PART", 5)
    (Folder(tmp_path) / store.EPISODES).create()
    part, sizes = store.Part(Folder(tmp_path), LAYERS), []
    for episode in range(0, 14, 2):
        part.write([make_row(episode), make_row(episode + 1)])
        sizes.append(sorted(pq.read_metadata(path).num_rows for path in (tmp_path / store.EPISODES).iterdir()))
    assert sizes == [[2], [4], [6], [2, 6], [4, 6], [6, 6], [2, 6, 6]]
    assert sorted(store.read(tmp_path)["episode"]) == list(range(14))


def test_a_run_leaves_few_bytes_a_row(tmp_path):
    """A part for every flush once took ten times as many."""
    (Folder(tmp_path) / store.EPISODES).create()
    part = store.Part(Folder(tmp_path), LAYERS)
    for first in range(0, 320, 5):
        part.write([make_row(episode) for episode in range(first, first + 5)])
    (path,) = (tmp_path / store.EPISODES).iterdir()
    at_once = store.parquet([make_row(episode) for episode in range(320)], store.schema(LAYERS))
    assert path.stat().st_size <= 1.1 * len(at_once)


READERS = {
    "pandas": lambda folder: pd.read_parquet(folder / store.EPISODES)["episode"],
    "pyarrow": lambda folder: pq.read_table(folder / store.EPISODES)["episode"].to_pylist(),
    "the report": lambda folder: store.read(folder)["episode"],
    "the sink": lambda folder: [row["episode"] for row in store.read_rows(Folder(folder))],
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_sees_every_row_once_at_any_moment(tmp_path, monkeypatch, name):
    """While rows are written as fast as they can be, through several parts."""
    monkeypatch.setattr(store, "ROWS_A_PART", 40)
    (Folder(tmp_path) / store.EPISODES).create()
    part, written, enough = store.Part(Folder(tmp_path), LAYERS), 1, threading.Event()
    part.write([make_row(0)])
    seen = []

    def read():
        while not enough.is_set():
            before = written
            seen.append((before, sorted(READERS[name](tmp_path))))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while len(seen) < 25 and reader.is_alive():
            part.write([make_row(written), make_row(written + 1)])
            written += 2
    finally:
        enough.set()
        reader.join()
    assert len(seen) >= 25  # it did not fail
    for before, episodes in seen:
        assert episodes == list(range(len(episodes))) and before <= len(episodes)


def test_a_torn_object_is_read_again(folder, monkeypatch):
    """As when it is replaced in an object store between the two questions that reading it takes."""
    monkeypatch.setattr(store, "TORN_SECONDS", 0.0)
    monkeypatch.setattr(Folder, "local", False)
    read, torn = Folder.read, iter(range(2))

    def tear(place, name):
        return read(place, name)[: 100 if next(torn, None) is not None else None]

    monkeypatch.setattr(Folder, "read", tear)
    assert len(store.read(folder)) == 5


def test_a_part_that_fails_leaves_the_others_as_they_are(folder):
    with pytest.raises(pa.ArrowException):
        store.Part(Folder(folder), LAYERS).write([make_row(5) | {"seed": "three"}])
    assert len(store.read_rows(Folder(folder))) == 5
    assert len(list((folder / store.EPISODES).glob("part-*"))) == 2


def test_an_unfinished_part_is_not_read(folder):
    """As a kill in the middle of writing leaves it."""
    (folder / store.EPISODES / ".part-0.parquet.tmp").write_bytes(b"PAR1")
    assert len(store.read_rows(Folder(folder))) == 5
    assert len(pd.read_parquet(folder / "episodes")) == 5


def test_a_row_that_two_drivers_wrote_is_read_once(folder):
    store.Part(Folder(folder), LAYERS).write([make_row(3)])
    assert len(store.read_rows(Folder(folder))) == len(store.read(folder)) == 5
    assert list(store.read(folder).index) == list(range(5))


def test_pandas_reads_a_run(folder):
    frame = pd.read_parquet(folder / "episodes")
    assert len(frame) == 5 and frame["episode_id"].is_unique
    assert frame["time"].iloc[0] == pd.Timestamp(TIME)
    assert frame["return"].max() == 0.375
    assert store.read(folder).equals(frame)


def test_duckdb_reads_a_run(folder):
    found = duckdb.sql(f"""select count(*), max("return"), any_value(fire2_tmax) from '{folder}/episodes/*.parquet'""")
    assert found.fetchall() == [(5, 0.375, 255)]
