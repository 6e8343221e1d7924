"""Debian's Chromium, without a window, and what it says of a page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.exports import tool

WIDE, NARROW = {"width": 1100, "height": 850}, {"width": 390, "height": 800}
PATIENCE_MS = 300_000  # no machine is that slow


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; the test fails where there is none."""
    with sync_playwright() as driver:
        # Root has no sandbox; a container's /dev/shm is small.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=tool("chromium"), args=options)
        yield browser
        browser.close()


class Visit:
    """A page that is looked at, with the errors that it had and the addresses that it asked for."""

    def __init__(self, browser: Browser, address: str | Path, **context):
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page: Page = browser.new_context(**{"viewport": WIDE} | context).new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)

    def tab_to(self, selector: str) -> None:
        """Presses Tab until what has the focus matches."""
        for _ in range(300):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def column(self, table: str, place: int) -> list[str]:
        """Texts of a column of the rows that are shown."""
        return self.page.locator(f"{table} tbody tr:not([hidden]) > :nth-child({place})").all_inner_texts()

    def barriers(self) -> list[str]:
        """What axe finds serious or critical."""
        found = Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found
                if each["impact"] in ("serious", "critical")]  # fmt: skip
