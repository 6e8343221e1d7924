"""The page of a run under way, as a browser asks for it: on loopback, by whoever has the token."""

import http.client
import shutil
import threading
import time
from pathlib import Path

import pytest

from search.results import store
from search.results.folder import Folder
from search.results.page import live
from tests.unit.test_inspection import ROWS, write_part

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "squeezenet-quintile"
LONGEST_SECONDS = 120  # no machine is that slow


def ask(server: live.Server, path: str | None = None, method: str = "GET") -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=LONGEST_SECONDS)
    connection.request(method, f"/{server.token}" if path is None else path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(REFERENCE, tmp_path / "r"))


@pytest.fixture
def server(run, monkeypatch):
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    with live.Server(Folder(run)) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_it_serves_the_page_at_its_address_alone(server):
    status, text, headers = ask(server)
    assert status == 200 and "<h1>squeezenet-quintile</h1>" in text and "data-live" in text
    assert headers["Cache-Control"] == "no-store" and headers["Content-Type"] == "text/html; charset=utf-8"
    assert server.address == f"http://127.0.0.1:{server.server_address[1]}/{server.token}"


@pytest.mark.parametrize("path", ["/", "/report.html", "/x", "//", "/{token}x", "/{token}/", "/../run.json", "/%7e"])
def test_without_the_token_nothing_is_served(server, path):
    status, text, _ = ask(server, path.replace("{token}", server.token))
    assert status == 403 and "squeezenet" not in text and server.token not in text


def test_each_server_has_a_token_of_its_own(server, run):
    with live.Server(Folder(run)) as other:
        assert len(other.token) == len(server.token) == 32 and other.token != server.token


def test_nothing_can_be_written_through_it(server):
    assert ask(server, method="POST")[0] == ask(server, method="PUT")[0] == 501


def test_it_listens_on_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_it_shows_what_was_written_since(server, run):
    (run / store.BEST).unlink()
    before = ask(server)[1]
    assert "Under way: 1 of 1 configurations scored." in before and not server.served_last.is_set()
    shutil.rmtree(run / store.EPISODES)
    assert "No configuration has been scored yet." in ask(server)[1]


def test_a_young_page_is_sent_again(server, run, monkeypatch):
    monkeypatch.setattr(live, "REFRESH_SECONDS", 3600.0)
    before = ask(server)[1]
    shutil.rmtree(run / store.EPISODES)
    assert ask(server)[1] == before


def test_a_run_that_cannot_be_read_now_is_told(server, run):
    write_part(run, ROWS)
    status, text, headers = ask(server)
    assert status == 503 and "part-1.parquet is damaged or of another run" in text
    assert headers["Content-Type"] == "text/plain" and not server.served_last.is_set()


def test_it_ends_when_the_page_of_the_ended_run_was_served(run, monkeypatch):
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    best = (run / store.BEST).read_bytes()
    (run / store.BEST).unlink()
    told: list[str] = []
    begun = threading.Event()
    serving = threading.Thread(target=live.serve, args=(Folder(run), lambda text: (told.append(text), begun.set())))
    serving.start()
    assert begun.wait(LONGEST_SECONDS)
    host, _, path = told[0].removeprefix("http://").partition("/")

    def page() -> str:
        connection = http.client.HTTPConnection(host, timeout=LONGEST_SECONDS)
        connection.request("GET", f"/{path}")
        return connection.getresponse().read().decode()

    assert "data-ended" not in page().partition("<script>")[0] and serving.is_alive()
    (run / store.BEST).write_bytes(best)
    assert "<main data-ended>" in page()
    serving.join(LONGEST_SECONDS)
    assert not serving.is_alive()


def test_it_ends_when_no_page_is_being_made(run, monkeypatch):
    """A process aborts that ends while a thread of its own is in a C++ library."""
    begun, finished = threading.Event(), threading.Event()

    def slow(*_, **__):
        begun.set()
        time.sleep(0.5)
        finished.set()
        return "page"

    monkeypatch.setattr(live.page, "of_run", slow)
    with live.Server(Folder(run)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=ask, args=(server,), daemon=True).start()
        assert begun.wait(LONGEST_SECONDS)
        server.end()
        assert finished.is_set()
