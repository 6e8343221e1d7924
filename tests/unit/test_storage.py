"""Folders of results on a disk; object stores are in tests/cluster."""

import itertools
import os
import threading
from pathlib import Path

import pytest

from approx_env.errors import InputError
from search.results.folder import Folder


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
    folder = Folder(tmp_path) / "episodes"
    folder.create()
    for data in (b"old", b"new"):
        folder.write("part", data)
    assert folder.read("part") == b"new"
    assert folder.names() == inside(tmp_path) == ["part"]


def test_json_comes_back_as_it_was_written(tmp_path):
    Folder(tmp_path).write_json("best.json", {"a": [1, 2.5], "b": None})
    assert Folder(tmp_path).read_json("best.json") == {"a": [1, 2.5], "b": None}


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fault):
    folder = Folder(tmp_path)
    folder.write("top", b"old")
    monkeypatch.setattr(os, fault, lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        folder.write("top", b"new")
    assert folder.read("top") == b"old" and inside(tmp_path) == ["top"]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    """It may be a disk that is not there for a while."""
    with pytest.raises(FileNotFoundError):
        (Folder(tmp_path) / "run").write("part", b"")
    assert inside(tmp_path) == []


def test_names_are_of_finished_files_in_order(tmp_path):
    for name in ("b", "a", ".c.tmp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert Folder(tmp_path).names() == ["a", "b"]
    assert (Folder(tmp_path) / "none").names() == []


def test_create_makes_it_once(tmp_path):
    folder = Folder(tmp_path) / "a" / "b"
    assert not folder.exists()
    folder.create()
    assert folder.exists()
    with pytest.raises(FileExistsError):
        folder.create()


def test_remove_and_discard(tmp_path):
    folder = Folder(tmp_path) / "run"
    folder.create()
    folder.write("file", b"")
    folder.remove("file")
    folder.remove("file")
    assert not folder.exists("file")
    folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path).read("none")


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder("results").path == str(tmp_path / "results") and str(Folder("results") / "r") == "results/r"
    bucket = Folder("s3://bucket/a?endpoint_override=127.0.0.1:1&scheme=http&region=x") / "r"
    assert (str(bucket), bucket.path, bucket.local) == ("s3://bucket/a/r", "bucket/a/r", False)
    assert bucket.place.endswith("/a/r?endpoint_override=127.0.0.1:1&scheme=http&region=x")
    assert Folder(tmp_path).local and Folder(tmp_path.as_uri()).local


@pytest.mark.parametrize(
    "place",
    ["gopher://x/y", "gs://bucket/path", "s3://", "s3:///?region=x", "", "a\0b", "caf\udce9", "s3://bucket/a?x=1"],
)
def test_a_place_that_is_none(place):
    with pytest.raises(InputError, match=r"is no place for results.*s3://bucket/path"):
        Folder(place)


def test_a_file_that_is_replaced_while_it_is_read_comes_in_one_piece(tmp_path):
    folder, over = Folder(tmp_path), threading.Event()
    folder.write("file", bytes(2**20))

    def replace():
        for number in itertools.count():
            if over.is_set():
                return
            folder.write("file", bytes([number % 256]) * (2**20 + number % 256))

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(50):
            data = folder.read("file")
            assert data == data[:1] * (2**20 + data[0])
    finally:
        over.set()
        writer.join()
