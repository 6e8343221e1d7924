"""Results in an object store: moto on loopback, as an S3 that can be switched off."""

import json
import os

import pandas as pd
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from search.results import program, report, store
from search.results.folder import Folder
from tests.cluster.test_faults import PPO, TOP, undisturbed
from tests.command import ROOT, Command

REGION, EPISODES = "us-east-1", 160  # PPO's
QUIET = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_EC2_METADATA_DISABLED": "true",  # pyarrow would ask a machine of AWS for its role
}


class Store:
    """An S3 on loopback with an empty bucket; its contents outlive `stop`."""

    def __init__(self):
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def place(self, name: str) -> str:
        return f"s3://bucket/{name}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region={REGION}"


@pytest.fixture(scope="module")
def s3():
    before = dict(os.environ)
    os.environ.update(QUIET)
    made = Store()
    address = f"127.0.0.1:{made.port}"
    fs.S3FileSystem(endpoint_override=address, scheme="http", region=REGION, allow_bucket_creation=True).create_dir(
        "bucket"
    )
    yield made
    made.stop()
    os.environ.clear()
    os.environ.update(before)


def test_a_folder(s3):
    folder = Folder(s3.place("folder"))
    assert not folder.exists() and folder.names() == []
    folder.create()
    (folder / "episodes").write("part-a", b"old")
    (folder / "episodes").write("part-a", b"new")
    assert folder.exists() and folder.exists("episodes/part-a")
    assert (folder / "episodes").names() == ["part-a"] and (folder / "episodes").read("part-a") == b"new"
    with pytest.raises(FileExistsError):
        folder.create()
    with pytest.raises(FileNotFoundError):
        folder.read("none")
    (folder / "episodes").remove("part-a")
    folder.remove("none")
    folder.discard()
    assert not folder.exists("episodes/part-a")


def test_a_run_is_asked_as_one_on_a_disk(s3, capsys):
    here, there = ROOT / "results" / "reference" / "squeezenet-hill", Folder(s3.place("lab")) / "r"
    for path in (here / store.RUN, here / store.BEST, *(here / store.EPISODES).iterdir()):
        there.write(str(path.relative_to(here)), path.read_bytes())

    def told(*arguments: str) -> list[dict]:
        assert program.main([*arguments, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (listed,) = told("list", "--results", s3.place("lab"))
    assert (listed["folder"], listed["scored"], listed["state"]) == ("s3://bucket/lab/r", 1597, "finished")
    for command in ("top", "show"):
        found, wanted = (told(command, place) for place in (there.place, str(here)))
        assert [one | {"folder": ""} for one in found] == [one | {"folder": ""} for one in wanted]


def finish(running: Command, place: str) -> pd.DataFrame:
    ended = running.finish()
    assert ended.status == 0, ended.output + ended.errors
    folder = Folder(place) / "r"
    rows = store.read(folder)
    assert len(rows) == EPISODES and rows["episode_id"].is_unique
    assert folder.exists("best.json")
    return rows.drop(columns="time").sort_values("episode", ignore_index=True)


@pytest.mark.slow
def test_a_search_that_loses_its_driver_and_its_store_is_as_if_undisturbed(s3):
    rough = s3.place("rough")
    running = Command(*PPO.split(), "--results", rough)
    running.wait_until(lambda: store.read_rows(Folder(rough) / "r"))
    running.process.kill()
    running.finish()
    resumed = Command("--resume", "r", "--results", rough)
    before = len(store.read_rows(Folder(rough) / "r"))
    resumed.wait_until(lambda: len(store.read_rows(Folder(rough) / "r")) > before)
    assert "going on with s3://bucket/rough/r" in resumed.output
    with resumed.held():
        s3.stop()
    try:
        resumed.wait_until(lambda: "results cannot be written or read" in resumed.output)
    finally:
        s3.start()
    assert finish(resumed, rough).equals(undisturbed(PPO))
    # What people read it with: pandas, and the report.
    here = str(Folder(rough) / "r"), rough.partition("?")[2]
    assert len(pd.read_parquet(f"{here[0]}/{store.EPISODES}?{here[1]}")) == EPISODES
    assert len(pd.read_parquet(f"{here[0]}/{store.TOP}?{here[1]}")) == TOP
    assert report.row((Folder(rough) / "r").place)[0] == "squeezenet_compact"


@pytest.mark.slow
def test_a_second_run_of_a_name_is_refused(s3):
    Folder(s3.place("taken/r")).write_json("run.json", {})
    refused = Command(*PPO.split(), "--results", s3.place("taken")).finish()
    assert refused.status == 2 and "s3://bucket/taken/r exists" in refused.errors
