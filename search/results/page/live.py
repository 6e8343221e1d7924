"""A run's page while the run is under way: served on loopback, to whoever knows its address.

The run's folder is only read. The address holds a random token, for other users of the machine reach loopback, too.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from approx_env.errors import InputError
from search.results import page
from search.results.folder import Folder
from search.results.page import reading

REFRESH_SECONDS = 2.0  # a page that is younger is sent again
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """Serves the page of one run at `address`, and at no other one.

    Args:
        folder: the run's.
    """

    daemon_threads = True  # a browser keeps connections open that it does not use

    def __init__(self, folder: Folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.served_last = threading.Event()  # set once the page of the ended run was sent
        self._folder, self._lock = folder, threading.Lock()
        self._made, self._page, self._ended = float("-inf"), b"", False

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}"

    def end(self) -> None:
        """Answers no more; returns when no page is being made.

        A process aborts that ends while another of its threads is in a C++ library.
        """
        self.shutdown()
        self._lock.acquire()

    def page(self) -> tuple[bytes, bool]:
        """The page, and whether the run had ended when it was made.

        Raises:
            InputError: the run cannot be read.
        """
        with self._lock:  # matplotlib draws one figure at a time
            if time.monotonic() - self._made > REFRESH_SECONDS:
                run = reading.read(self._folder)
                self._page, self._ended = page.of_run(run, live=True).encode(), run.ended
                self._made = time.monotonic()
            return self._page, self._ended


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """Sends the page."""
        if not secrets.compare_digest(self.path.encode(), f"/{self.server.token}".encode()):
            self._send(HTTPStatus.FORBIDDEN, b"This address lacks its token: take the whole one that was printed.")
            return
        try:
            made, ended = self.server.page()
        except InputError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode(errors="backslashreplace"), "text/plain")
            return
        self._send(HTTPStatus.OK, made)
        if ended:
            self.server.served_last.set()

    def _send(self, status: HTTPStatus, body: bytes, kind: str = HEADERS["Content-Type"]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Says nothing: what is served is no news."""


def serve(folder: Folder, tell: Callable[[str], None]) -> None:
    """Serves a run's page until the run has ended and the page was sent once more.

    Args:
        tell: is told the address.

    Raises:
        InputError: the folder holds no run that can be shown.
    """
    reading.read(folder)
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            tell(server.address)
            server.served_last.wait()
        finally:
            server.end()
