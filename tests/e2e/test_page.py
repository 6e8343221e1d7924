"""The report of a real run in a real browser, from disk and live."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from search.results import report
from tests.browser import NARROW, Visit, chromium
from tests.command import LONGEST_SECONDS, ROOT, Command, run

pytestmark = pytest.mark.slow
SEARCH = "--model squeezenet_compact --algorithm hill --seeds 0,1 --episodes 20 --top 10"
REFERENCE = ROOT / "results" / "reference"
BEST = "#best table >> nth=0"


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def written() -> Path:
    """report.html of a run with everything that a page shows, but for a front."""
    done = run(f"{SEARCH} --sensitivity --finetune-epochs 0.25")
    assert done.status == 0, done.errors
    return done.folder / "report.html"


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pages") / "compared.html"
    assert report.main([*(str(REFERENCE / f"alexnet-{name}") for name in ("ppo", "random", "hill")), "--html",
                        str(file)]) == 0  # fmt: skip
    return file


@pytest.fixture(scope="module")
def front() -> Path:
    done = run(f"{SEARCH} --search-tmax --objective pareto")
    assert done.status == 0, done.errors
    return done.folder / "report.html"


@pytest.fixture(params=["written", "compared", "front"])
def file(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("context", [{}, {"color_scheme": "dark"}, {"viewport": NARROW}], ids=["light", "dark", "narrow"])
def test_a_page_is_sound_and_shuts_nobody_out(browser, file, context):
    visit = Visit(browser, file, **context)
    assert visit.barriers() == []
    for fold in visit.page.locator("summary").all():
        fold.click()
    assert visit.barriers() == []
    assert visit.errors == [] and set(visit.asked) - {file.as_uri()} <= {u for u in visit.asked if u.startswith("data:")}
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert file.stat().st_size < 1_000_000


def test_a_page_follows_the_browser_from_light_to_dark(browser, written):
    visit = Visit(browser, written)
    colours = []
    for scheme in ("light", "dark"):
        visit.page.emulate_media(color_scheme=scheme)
        colours.append(visit.page.evaluate("""() => [document.body, document.querySelector("#search svg text")].map(
            (part, place) => getComputedStyle(part)[place ? "fill" : "backgroundColor"])"""))  # fmt: skip
    assert colours == [["rgb(255, 255, 255)", "rgb(28, 32, 36)"], ["rgb(20, 23, 26)", "rgb(230, 233, 236)"]]


def test_on_paper_a_page_has_no_controls_and_is_light(browser, written):
    visit = Visit(browser, written, color_scheme="dark")
    visit.page.emulate_media(media="print", color_scheme="dark")
    for selector in ("nav", ".filter", ".pick"):
        assert not visit.page.locator(selector).first.is_visible()
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_rows_sort_by_keyboard(browser, written):
    visit = Visit(browser, written)
    visit.page.locator("#best h2").click()
    visit.tab_to("#best .sort")
    (table, *_) = visit.page.locator("#best table").all()
    assert visit.page.evaluate("document.activeElement.textContent") == "rank"
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.press("Enter")
    assert table.locator("th[aria-sort=descending]").inner_text().strip().startswith("rank")
    ranks = visit.column("#best-2", 2)
    assert ranks == sorted(ranks, key=int, reverse=True) and len(ranks) == 10
    for _ in range(4):
        visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Space")
    drops = [float(text) for text in visit.column("#best-2", 6)]
    assert drops == sorted(drops) and table.locator("th[aria-sort=ascending]").inner_text().startswith("drop, search")


def test_rows_are_filtered_as_one_types(browser, written):
    visit = Visit(browser, written)
    visit.tab_to("input[type=search]")
    visit.page.keyboard.type("seed1")
    shown = visit.column("#best-2", 3)
    assert shown and all("seed1" in name for name in shown)
    assert visit.page.locator(".filter [role=status]").inner_text() == f"{len(shown)} of 10 rows"
    visit.page.keyboard.press("Control+A")
    visit.page.keyboard.press("Delete")
    assert len(visit.column("#best-2", 3)) == 10


@pytest.mark.parametrize(("name", "section"), [("written", "best"), ("front", "front")])
def test_a_row_that_is_selected_by_keyboard_stands_out_in_its_figure(browser, request, name, section):
    visit = Visit(browser, request.getfixturevalue(name))
    visit.tab_to(f"#{section} .pick")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    inside = f"#{section} svg [data-key"
    assert set(visit.page.locator(f"{inside}='0']").evaluate_all("all => all.map(each => each.classList.value)")) == {"picked"}
    others = visit.page.locator(f"{inside}]:not([data-key='0'])")
    assert set(others.evaluate_all("all => all.map(each => each.classList.value)")) <= {"dimmed"}
    visit.page.keyboard.press("Enter")
    assert visit.page.locator(f"#{section} .picked, #{section} .dimmed").count() == 0


def test_a_fold_opens_by_keyboard(browser, written):
    visit = Visit(browser, written)
    visit.tab_to("#search summary")
    assert not visit.page.locator("#search table").is_visible()
    visit.page.keyboard.press("Enter")
    assert visit.page.locator("#search table").is_visible()


# -- live


@pytest.fixture
def searching():
    """A search that has hours to go."""
    arguments = "--model squeezenet_compact --algorithm random --episodes 100000 --search-images 64 --num-env-runners 1"
    command = Command(*arguments.split())
    try:
        command.wait_for_rows()
        yield command
    finally:
        os.killpg(command.process.pid, signal.SIGINT)
        command.finish()


def serve(folder: Path) -> tuple[subprocess.Popen, str]:
    """`search.report --live`, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "search.report", "--live", str(folder)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    address = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}", address), process.stderr.read()
    return process, address


def test_a_live_page_moves_while_the_search_runs(browser, searching):
    process, address = serve(searching.folder)
    visit = Visit(browser, address)
    verdict = visit.page.locator(".verdict")
    before = verdict.inner_text()
    visit.page.locator("#search summary").click()
    visit.page.wait_for_function("before => document.querySelector('.verdict').textContent !== before", arg=before)
    after = verdict.inner_text()
    scored = [int(re.match(r"Under way: (\d+) of 100000 configurations scored", text)[1]) for text in (before, after)]
    assert scored[0] < scored[1] and searching.process.poll() is None
    assert visit.page.locator("#search table").is_visible()  # what was opened stays open
    assert visit.barriers() == [] and visit.errors == [] and set(visit.asked) <= {address, "data:,"}
    process.send_signal(signal.SIGINT)
    assert process.wait(LONGEST_SECONDS) == 130 and process.stderr.read() == "interrupted\n"


def test_the_server_ends_with_the_run(browser, written, tmp_path):
    folder = Path(shutil.copytree(written.parent, tmp_path / "r"))
    (folder / "best.json").unlink()
    process, address = serve(folder)
    visit = Visit(browser, address)
    verdict = visit.page.locator(".verdict")
    assert verdict.inner_text().startswith("Under way: ") and process.poll() is None
    shutil.copy(written.parent / "best.json", folder)
    visit.page.wait_for_selector("main[data-ended]")
    assert verdict.inner_text().startswith("Teacher ")
    assert process.wait(LONGEST_SECONDS) == 0 and process.stderr.read() == ""
    assert visit.errors == [] and set(visit.asked) <= {address, "data:,"}
