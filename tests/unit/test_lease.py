"""One driver at a time writes a run."""

import socket
import subprocess
import sys
import threading
import uuid
from dataclasses import replace

import pytest

from approx_env.errors import InputError
from search.results import lease, store
from search.results.folder import Folder, as_json


class Clock:
    """What nothing but sleeping moves, in place of the module `time`; `meanwhile` happens during each sleep."""

    def __init__(self):
        self.now, self.meanwhile = 0.0, lambda seconds: None

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(seconds)


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease, "time", made)
    return made


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def elsewhere() -> lease.Owner:
    return replace(lease.me(), machine="another", host="far")


def test_a_free_run_is_taken_and_given_back(folder):
    owner = lease.take(folder)
    assert folder.read_json(lease.FILE)["token"] == owner.token
    lease.release(folder, owner)
    assert not folder.exists(lease.FILE)
    lease.release(folder, owner)


def test_a_dead_process_of_this_machine_is_not_waited_for(folder, clock, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lease.beat(folder, replace(lease.me(), process=ended.pid))
    owner = lease.take(folder)
    assert clock.now == lease.SETTLE_SECONDS
    assert folder.read_json(lease.FILE)["token"] == owner.token
    assert capsys.readouterr().out == ""


def test_a_silent_one_of_another_machine_is_waited_for(folder, clock, capsys):
    lease.beat(folder, elsewhere())
    lease.take(folder)
    assert clock.now > lease.EXPIRES_SECONDS
    assert "on far: waiting" in capsys.readouterr().out


def test_one_at_work_is_left_alone(folder, clock):
    other = elsewhere()
    lease.beat(folder, other)

    def work(seconds):
        if clock.now == 10:
            lease.beat(folder, other)

    clock.meanwhile = work
    with pytest.raises(InputError, match=r"is being written by process \d+ on far: wait for its end"):
        lease.take(folder)
    assert clock.now == 10
    assert folder.read_json(lease.FILE)["token"] == other.token


def test_of_two_that_go_on_with_a_run_one_stays(folder, clock, monkeypatch):
    """Both have waited long enough before either says that it goes on, and both say so before either looks again."""
    lease.beat(folder, replace(lease.me(), machine="another"))
    taken, refused, together, beat = [], [], threading.Barrier(2, timeout=60), lease.beat

    def beat_together(*arguments):
        together.wait()
        beat(*arguments)
        together.wait()

    monkeypatch.setattr(lease, "beat", beat_together)

    def try_to_take():
        try:
            taken.append(lease.take(folder))
        except InputError as error:
            refused.append(str(error))

    both = [threading.Thread(target=try_to_take) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert (len(taken), len(refused)) == (1, 1)
    assert folder.read_json(lease.FILE)["token"] == taken[0].token


def test_of_two_that_begin_at_once_where_folders_are_not_made_one_stays(folder, clock):
    """An object store has no folders, so that nothing but the lease can tell."""
    clock.meanwhile = lambda seconds: lease.beat(folder, elsewhere())
    with pytest.raises(InputError, match="has just gone on"):
        lease.take(folder)


def test_a_living_process_of_another_person_is_not_dead(folder, clock, monkeypatch):
    def refuse(process, signal):
        raise PermissionError

    lease.beat(folder, lease.me())
    monkeypatch.setattr(lease.os, "kill", refuse)
    lease.take(folder)
    assert clock.now > lease.EXPIRES_SECONDS


def test_renewing_does_not_take_back(folder):
    first = lease.take(folder)
    assert not lease.renew(folder, first)
    lease.beat(folder, elsewhere())
    assert lease.renew(folder, first) and lease.lost(folder, first)


def test_a_lease_that_another_has_given_back_is_lost_and_not_made_anew(folder):
    first = lease.take(folder)
    folder.write_json(store.RUN, {})
    folder.remove(lease.FILE)
    assert lease.renew(folder, first)
    assert not folder.exists(lease.FILE)


def test_a_lease_is_not_lost_while_its_storage_is_away(tmp_path):
    folder = Folder(tmp_path / "away")
    assert not lease.lost(folder, lease.me())


WHOLE = {"token": "t", "machine": "m", "host": "h", "process": 2**22, "time": 1.0}
WRONG = [{"token": 3}, {"machine": None}, {"host": []}, {"process": 0}, {"process": -1}, {"process": 2**80},
         {"process": "1"}, {"process": True}, {"process": 1.5}, {"time": "now"}, {"time": None}]  # fmt: skip


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"null", *(as_json(WHOLE | change) for change in WRONG)]
)
def test_a_damaged_lease(folder, content):
    folder.write(lease.FILE, content)
    with pytest.raises(InputError, match=r"lease.json is damaged: remove it"):
        lease.take(folder)


def test_a_machine_without_proc_is_told_by_its_name_and_network_card(folder, monkeypatch):
    with_proc = lease.me().machine
    monkeypatch.setattr(lease, "BOOT", "/none")
    first, second = lease.me(), lease.me()
    assert first.machine == second.machine == f"{socket.gethostname()} {uuid.getnode():x}" != with_proc
    assert first.token != second.token
    lease.take(folder)
    assert folder.read_json(lease.FILE)["machine"] == first.machine


def test_a_heart_beats_until_another_driver_has_the_run(folder, clock):
    mine, other = lease.take(folder), elsewhere()
    heart = lease.Heart(folder, mine)
    before = folder.read_json(lease.FILE)["time"]
    clock.sleep(1)
    heart.beat()
    heart.check()
    assert not heart.lost and folder.read_json(lease.FILE)["time"] > before
    lease.beat(folder, other)
    heart.check()
    assert heart.lost
    lease.release(folder, other)
    heart.beat()
    assert heart.lost and not folder.exists(lease.FILE)


def test_without_an_owner_nothing_beats(folder):
    heart = lease.Heart(folder, None)
    heart.beat()
    heart.check()
    assert not heart.lost and folder.names() == []


def test_what_another_has_taken_is_not_given_back(folder):
    first = lease.take(folder)
    lease.beat(folder, elsewhere())
    lease.release(folder, first)
    assert folder.exists(lease.FILE)
