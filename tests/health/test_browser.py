"""The page in a real browser: Debian's Chromium, driven by Playwright, and axe for access.

``PAGE_SCREENSHOTS=docs/_static`` writes the pictures of the docs, of one prepared report.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

from flask_workersize import CapacityReport
from flask_workersize.health.endpoint import CapacityEndpoint
from flask_workersize.health.page import REFRESH_SECONDS
from flask_workersize.health.view import view
from tests.health.reports import FAIL, FULL, LIVE, NOW, PLAN, any_report
from tests.plain import SECRET
from tests.servers.serving import Server, clean_environ, serve_prod, starter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

PROJECT = Path(__file__).parents[2]
URL = "/_health/capacity"
SCREENSHOTS = os.environ.get("PAGE_SCREENSHOTS")
SOON_MS = 2000
"""How long after a change the page may show what was before."""

VIEWS = [("light", 1120), ("dark", 1120), ("light", 375), ("dark", 375)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the browser once."""
    reason = "pip install 'flask-workersize[browser]'"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


class Visits:
    """Opens pages, each in a context of its own, and notes what the browser complains about."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []

    def __call__(self, url: str, scheme: Any = "light", width: int = 1120, **options: Any) -> Page:
        """Open a page."""
        size: Any = {"width": width, "height": 800}
        context = self._browser.new_context(color_scheme=scheme, viewport=size, **options)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.goto(url)
        return page

    def close(self) -> None:
        """Close every page."""
        for context in self._browser.contexts:
            context.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    """Open pages of which the browser may complain about nothing."""
    visits = Visits(browser)
    yield visits
    # Not what comes of a page that is closed while it waits for an answer.
    complaints = [*visits.complaints]
    visits.close()
    assert complaints == []


def expect(locator: Locator) -> Any:
    """Return what can be expected of an element, within the time that is given there."""
    from playwright.sync_api import expect

    return expect(locator)


def part(page: Page, name: str) -> Locator:
    """Return one part of the page."""
    return page.locator(f"[data-part={name}]")


def violations(page: Page) -> list[str]:
    """Return what axe finds, and whether the page is wider than the window."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    nodes = [f"{item['id']}: {node['html'][:200]}" for item in found for node in item["nodes"]]
    return [*nodes, *["wider than the window"] * wide]


# A report that the test chooses


class Site:
    """Serves one report, as the health port does, and counts who asks for it in JSON."""

    def __init__(self) -> None:
        self.report: dict[str, Any] = LIVE
        self.details: dict[str, Any] | None = None
        self.polls: list[str | None] = []
        self.url = ""
        # As if the moment of the reports were now, in the middle of a second.
        self._shift = int(time.time()) - NOW + 0.5

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        endpoint = CapacityEndpoint(self._make, lambda: SecretStr(SECRET), is_inside=True)
        answer = endpoint.answers(URL).get(environ["PATH_INFO"])
        if answer is None:
            return Response("nothing here", 404)(environ, start)
        if environ.get("HTTP_ACCEPT") == "application/json":
            self.polls.append(environ.get("HTTP_AUTHORIZATION"))
        return answer(environ)(environ, start)

    def _make(self, details: bool, live: bool, asking: int | None) -> CapacityReport:
        chosen = self.details if details and self.details else self.report
        events = [item | {"at": item["at"] + self._shift} for item in chosen.get("events", [])]
        return CapacityReport.model_validate({**chosen, **({"events": events} if events else {})})


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    """Serve reports from this process."""
    site = Site()
    server = make_server("127.0.0.1", 0, site, threaded=True, request_handler=Quiet)
    site.url = f"http://127.0.0.1:{server.port}{URL}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def await_script(page: Page) -> None:
    """Wait until the script has drawn the page: it takes away what is there, and draws it again."""
    page.evaluate("show({})")
    expect(page.get_by_role("status")).not_to_be_empty(timeout=SOON_MS)


def test_script_and_server_show_the_same_of_any_report(visit: Visits, site: Site) -> None:
    source = random.Random(20)
    reports = [PLAN, LIVE, FULL, FAIL, *(any_report(source) for _ in range(120))]
    page = visit(site.url)
    by_script = page.evaluate(
        """
            ([text, now]) => JSON.stringify(JSON.parse(text).map((report) => view(report, now)))
        """,
        [json.dumps(reports), NOW],
    )
    for report, seen in zip(reports, json.loads(by_script), strict=True):
        assert seen == json.loads(json.dumps(view(report, NOW)))


@pytest.mark.parametrize("report", [PLAN, FULL], ids=["plan", "full"])
def test_script_draws_what_the_server_has_written(
    visit: Visits, site: Site, report: dict[str, Any]
) -> None:
    site.report = report
    drawn = """
        Array.from(document.querySelectorAll("[data-part]"), (place) => place.outerHTML)
          .concat(Array.from(document.querySelectorAll("[data-needs]"), (place) => place.hidden))
    """
    written = visit(site.url, java_script_enabled=False).evaluate(drawn)
    page = visit(site.url)
    await_script(page)
    assert page.evaluate(drawn) == written


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_page_is_open_to_everyone(visit: Visits, site: Site, scheme: str, width: int) -> None:
    site.report = FULL | {"busy": 3, "queued": 4, "running": [130.0, 2.0, 0.1]}
    page = visit(site.url, scheme, width)
    assert violations(page) == []
    site.report = PLAN
    expect(page.get_by_label("Token")).to_be_visible(timeout=SOON_MS)
    assert violations(page) == []


def test_texts_from_elsewhere_stay_texts(visit: Visits, site: Site) -> None:
    line = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    site.report = LIVE | {"events": [{"at": NOW, "text": line}], "advice": [line]}
    page = visit(site.url)
    await_script(page)
    expect(part(page, "events")).to_contain_text(line)
    expect(part(page, "advice")).to_have_text(line)
    assert page.locator("img").count() == 0


def test_a_screen_reader_hears_of_a_status_that_changes_and_of_nothing_else(
    visit: Visits, site: Site
) -> None:
    page = visit(site.url)
    page.evaluate("""
        window.heard = [];
        const note = (changes) => heard.push(changes[0].target.textContent);
        for (const place of document.querySelectorAll("[role=status], [aria-live], [role=alert]")) {
          new MutationObserver(note).observe(place, {childList: true, subtree: true});
        }
    """)
    site.report = LIVE | {"busy": 3, "queued": 9}
    expect(part(page, "busy")).to_have_text("3 of 3", timeout=SOON_MS)
    assert page.evaluate("heard") == []
    site.report = LIVE | {"status": "warn"}
    expect(page.get_by_role("status")).to_have_text("warn", timeout=SOON_MS)
    assert page.evaluate("heard") == ["warn"]


def test_page_that_nobody_sees_does_not_ask(visit: Visits, site: Site) -> None:
    page = visit(site.url)
    await_script(page)
    hide = """
        (hidden) => {
          Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }
    """
    page.evaluate(hide, True)
    page.wait_for_timeout(200)
    asked = len(site.polls)
    page.wait_for_timeout(1300)
    assert len(site.polls) == asked
    page.evaluate(hide, False)
    await_script(page)


def test_token_is_sent_as_a_header_and_kept_nowhere(visit: Visits, site: Site) -> None:
    site.report, site.details = PLAN, FULL
    page = visit(site.url)
    field = page.get_by_label("Token")
    expect(field).to_have_attribute("type", "password")
    expect(field).to_have_attribute("autocomplete", "off")
    field.fill("wröng")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not accepted", timeout=SOON_MS)
    expect(field).to_have_value("")
    expect(page.locator("table")).to_be_hidden()
    field.fill(SECRET)
    page.get_by_role("button").click()
    expect(page.locator("tbody tr")).to_have_count(3, timeout=SOON_MS)
    expect(field).to_be_hidden()
    expect(page.locator("#refused")).to_be_empty()
    await_script(page)
    wrong = "wröng".encode().decode("latin-1")
    assert {*site.polls} == {None, f"Bearer {wrong}", f"Bearer {SECRET}"}
    assert page.url == site.url
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert SECRET not in page.content()
    page.reload()
    expect(field).to_be_visible()


def test_server_that_does_not_answer_is_told_and_asked_less_and_less(
    browser: Browser, site: Site
) -> None:
    visit = Visits(browser)
    page = visit(site.url)
    await_script(page)
    page.route(f"**{URL}", lambda route: route.abort())
    asked: list[float] = []
    page.on("requestfailed", lambda _: asked.append(time.monotonic()))
    expect(page.get_by_role("status")).to_have_text("no answer", timeout=3000)
    expect(page.locator("#silence")).to_contain_text("No answer since", timeout=3000)
    page.wait_for_timeout(1200)
    # Each second it would have been the third time.
    assert len(asked) <= 2
    page.unroute(f"**{URL}")
    expect(page.get_by_role("status")).to_have_text("pass", timeout=11_000)
    expect(page.locator("#silence")).to_be_empty()
    assert [line for line in visit.complaints if "ERR_FAILED" not in line] == []
    visit.close()


def shrink(path: Path) -> None:
    """Store a picture with a palette: the page has few colours."""
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def test_pictures_of_the_docs(visit: Visits, site: Site, tmp_path: Path) -> None:
    site.report = FULL
    folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    for name, scheme, width in (
        ("page-light", "light", 1000),
        ("page-dark", "dark", 1000),
        ("page-phone", "light", 375),
    ):
        page = visit(site.url, scheme, width)
        await_script(page)
        path = folder / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        shrink(path)
        assert 10_000 < path.stat().st_size < 80_000


# A real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the example app with two workers of one slot each, and a health port."""
    pytest.importorskip("flask_sqlalchemy", reason="the example app needs Flask-SQLAlchemy")
    folder = tmp_path_factory.mktemp("served")
    paths = [str(PROJECT), clean_environ({})["PYTHONPATH"]]
    with starter(folder) as start:
        yield start(
            serve_prod("--workers", "2", server="gunicorn", app="example_app"),
            None,
            EXAMPLE_DATABASE_URI=f"sqlite:///{folder / 'lms.sqlite3'}",
            NOW_LMS_HOST="127.0.0.1",
            NOW_LMS_PORT="0",
            NOW_LMS_HEALTH_PORT="0",
            NOW_LMS_HEALTH_TOKEN=SECRET,
            NOW_LMS_WORKER_MEMORY_MAX_MB="150",
            PYTHONPATH=":".join(paths),
        ).await_ready()


@contextmanager
def asked(server: Server, path: str, count: int = 1) -> Iterator[None]:
    """Let as many requests run meanwhile."""
    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(_ask, server, path)
        yield


def _ask(server: Server, path: str) -> None:
    with suppress(OSError):
        server.get(path)


def test_page_shows_the_plan_to_everyone(visit: Visits, server: Server) -> None:
    page = visit(server.urls[0] + URL)
    expect(page.get_by_role("heading", level=1)).to_have_text("Capacity")
    expect(part(page, "line")).to_contain_text("2 workers × 1 thread")
    report = server.get(URL).json()
    for formula in report["why"].values():
        expect(part(page, "why")).to_contain_text(formula)
    expect(part(page, "busy")).to_be_hidden()


def test_page_follows_the_load(visit: Visits, server: Server) -> None:
    page = visit(server.health_url + URL)
    expect(part(page, "busy")).to_have_text("0 of 2", timeout=SOON_MS)
    with asked(server, "/lab/wait?seconds=2.5"):
        expect(part(page, "busy")).to_have_text("1 of 2", timeout=SOON_MS)
        expect(page.locator(".slots .busy")).to_have_count(1)
    expect(part(page, "busy")).to_have_text("0 of 2", timeout=SOON_MS)


def test_full_queue_shows_as_waiting(visit: Visits, server: Server) -> None:
    page = visit(server.health_url + URL)
    with asked(server, "/lab/wait?seconds=1.5", 4):
        expect(part(page, "busy").locator(".full")).to_have_text("2", timeout=SOON_MS)
        expect(part(page, "queued").locator(".full")).to_have_text("2", timeout=SOON_MS)
    expect(part(page, "queued")).to_have_text("0", timeout=SOON_MS)


def test_recycled_worker_shows(visit: Visits, server: Server) -> None:
    page = visit(server.urls[0] + URL)
    page.get_by_label("Token").fill(SECRET)
    page.get_by_role("button").click()
    workers = page.locator("tbody th")
    expect(workers).to_have_count(2, timeout=SOON_MS)
    before = set(workers.all_inner_texts())
    with asked(server, "/lab/memory?mb=200&seconds=2"):
        pass
    recycled = part(page, "counts").locator("div", has_text="recycled").locator("dd")
    expect(recycled).to_have_text("1", timeout=10_000)
    expect(part(page, "events")).to_contain_text("recycling", timeout=SOON_MS)
    for _ in range(100):
        after = set(workers.all_inner_texts())
        if len(after) == 2 and after != before:
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail(f"still {before}")


def test_page_without_script_is_filled_and_refreshes_itself(visit: Visits, server: Server) -> None:
    page = visit(server.health_url + URL, java_script_enabled=False)
    expect(part(page, "busy")).to_have_text("0 of 2")
    expect(page.get_by_label("Token")).to_be_hidden()
    with asked(server, f"/lab/wait?seconds={REFRESH_SECONDS + 2}"):
        changed_within = (REFRESH_SECONDS + 2) * 1000
        expect(part(page, "busy")).to_have_text("1 of 2", timeout=changed_within)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/courses/serving-python",
        "/courses/serving-python/2",
        "/lab/",
        "/lab/compute?ms=1",
        "/lab/compute?ms=9999",
        "/nowhere",
    ],
)
def test_pages_of_the_example_are_open_to_everyone(
    browser: Browser, server: Server, path: str
) -> None:
    visit = Visits(browser)
    found = [violations(visit(server.urls[0] + path, *how)) for how in VIEWS[1:3]]
    assert found == [[], []]
    # The browser itself logs pages with an error.
    assert [line for line in visit.complaints if "the server responded" not in line] == []
    visit.close()
