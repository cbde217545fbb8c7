"""The page for people at ``/_health/capacity``: who gets it, what it shows, what it may do."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import pytest
from flask import Flask, redirect
from pydantic import SecretStr
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, TestResponse

from flask_workersize import CapacityReport, WorkerSizeConfigError, WorkerSizing
from flask_workersize.app_state import is_report_path
from flask_workersize.health.endpoint import FILES, CapacityEndpoint
from flask_workersize.health.probe import ProbeApp, ProbeRules
from flask_workersize.health.view import number, percent, span, view
from flask_workersize.runtime.deployment import current
from tests.health.reports import FULL, LIVE, NOW, PLAN
from tests.health.snapshots import snapshot
from tests.plain import SECRET, clear_environment, new_app

URL = "/_health/capacity"
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;"
    "q=0.8,application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
BROWSER = {"Accept": CHROMIUM}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MARKUP = "<script>alert(1)</script>\"'&"


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    monkeypatch.setattr(current, "deployment", None)


class Page(HTMLParser):
    """What a page loads, and whether anything stands in it that the policy would block."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.blocked: list[str] = []
        self.texts: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._tag = tag
        if tag in ("link", "script"):
            self.loaded.append(given.get("src") or given.get("href") or "")
        if tag == "style" or any(name == "style" or name.startswith("on") for name in given):
            self.blocked.append(self.get_starttag_text() or tag)

    def handle_data(self, data: str) -> None:
        if self._tag == "script" and data.strip():
            self.blocked.append(data)
        self.texts.append(data)


def endpoint(report: dict[str, Any]) -> CapacityEndpoint:
    """Return an endpoint that knows one report."""
    made = CapacityReport.model_validate(report)
    return CapacityEndpoint(lambda *_: made, lambda: SecretStr(SECRET), is_inside=True)


def port(report: dict[str, Any]) -> Client:
    """Return a client of a health port with one report."""
    return Client(ProbeApp(endpoint(report), snapshot, ProbeRules(120)))


def shown(report: dict[str, Any]) -> str:
    """Return the page of a report."""
    return port(report).get(URL, headers=BROWSER).text


def words(nodes: list[Any]) -> str:
    """Return the text of a part."""
    return "".join(node if isinstance(node, str) else words(node[2]) for node in nodes)


# Who gets it


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (CHROMIUM, True),
        (FIREFOX, True),
        ("text/html", True),
        ("application/json;q=0.5, text/html", True),
        ("text/*", True),
        (None, False),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/*", False),
        ("application/json, text/html", False),
        ("text/html;q=0.5, application/json", False),
        ("text/html;q=0, */*", False),
        ("text/plain", False),
        ("text/html;q=nonsense", False),
        (";;,,=", False),
    ],
)
def test_only_who_prefers_html_gets_the_page(accept: str | None, page: bool) -> None:
    headers = {} if accept is None else {"Accept": accept}
    app = new_app()
    WorkerSizing(app)
    for client in (app.test_client(), port(LIVE)):
        response = client.get(URL, headers=headers)
        assert response.status == "200 OK"
        assert response.mimetype == ("text/html" if page else "application/json")
        assert response.headers["Vary"] == "Accept"
        assert response.headers["Cache-Control"] == "no-store"


def test_browser_is_told_what_to_refuse() -> None:
    response = port(LIVE).get(URL, headers=BROWSER)
    assert response.headers["Content-Security-Policy"] == POLICY
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert Page(response.text).blocked == []


@pytest.mark.parametrize("path", [URL, *(f"{URL}/{name}" for name in FILES)])
def test_head_is_answered_like_get_and_other_methods_are_not(path: str) -> None:
    app = new_app()
    WorkerSizing(app)
    for client in (app.test_client(), port(LIVE)):
        head, get = (client.open(path, method=m, headers=BROWSER) for m in ("HEAD", "GET"))
        assert head.data == b""
        assert (head.status, list(head.headers)) == (get.status, list(get.headers))
        assert get.content_length == len(get.data)
        assert client.post(path, headers=BROWSER).status_code == 405


def test_login_redirect_does_not_stand_in_the_way() -> None:
    app = new_app()
    app.before_request(lambda: redirect("/login"))
    WorkerSizing(app)
    client = app.test_client()
    for path in (URL, *(f"{URL}/{name}" for name in FILES)):
        assert client.get(path, headers=BROWSER).status_code == 200


def test_settings_that_are_not_valid_are_a_page_with_one_line() -> None:
    def refuse(*_: object) -> CapacityReport:
        raise WorkerSizeConfigError(f"THREADS is not a whole number {MARKUP}.")

    made = CapacityEndpoint(refuse, lambda: None)
    response: Any = made.report({"HTTP_ACCEPT": CHROMIUM, "PATH_INFO": URL})
    text = response.get_data(as_text=True)
    assert response.status_code == 500
    assert response.mimetype == "text/html"
    assert f"THREADS is not a whole number {MARKUP}." in Page(text).texts
    assert "<script>alert" not in text
    assert made.report({}).mimetype == "application/json"


# Where its files are


def loaded(client: Client, path: str, prefix: str = "") -> list[TestResponse]:
    """Return what a browser gets for each file that the page of a path loads."""
    page = Page(client.get(path, headers=BROWSER).text)
    assert len(page.loaded) == len(FILES)
    addresses = [urljoin(f"http://lms.example{path}", item) for item in page.loaded]
    assert all(item.startswith(f"http://lms.example{prefix}/") for item in addresses)
    return [client.get(item.removeprefix("http://lms.example")) for item in addresses]


@pytest.mark.parametrize(
    "url", [URL, "/capacity", "/größe", "/health/", "/a:b", '/it\'s%20"odd"?', "/50%"]
)
def test_files_are_found_beside_the_report_wherever_it_is(url: str) -> None:
    app = new_app(HEALTH_URL=url)
    WorkerSizing(app)
    mounted = Client(DispatcherMiddleware(Flask("site"), {"/lms": app}))
    asked = url.replace("%", "%25").replace("?", "%3F")
    for client, prefix in ((app.test_client(), ""), (mounted, "/lms")):
        style, script = loaded(client, prefix + asked, prefix)
        assert (style.status_code, style.mimetype) == (200, "text/css")
        assert (script.status_code, script.mimetype) == (200, "text/javascript")


def test_files_are_found_behind_a_proxy_that_takes_off_a_prefix() -> None:
    """The page names no path that only the app knows."""
    style, script = Page(shown(LIVE)).loaded
    assert urljoin("https://lms.example/hidden/prefix/_health/capacity", style) == (
        "https://lms.example/hidden/prefix/_health/capacity/page.css"
    )
    assert script.endswith("/page.js")


@pytest.mark.parametrize("name", FILES)
def test_files_are_kept_until_they_change(name: str) -> None:
    client = port(LIVE)
    first = client.get(f"{URL}/{name}")
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    known = {"If-None-Match": first.headers["ETag"]}
    again = client.get(f"{URL}/{name}", headers=known)
    assert (again.status_code, again.data) == (304, b"")
    assert client.get(f"{URL}/{name}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["page.html", "page.py", "../page.css", "static/page.css", ""])
def test_nothing_else_is_served(path: str) -> None:
    app = new_app()
    WorkerSizing(app)
    for client in (app.test_client(), port(LIVE)):
        assert client.get(f"{URL}/{path}", headers=BROWSER).status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_files_load_nothing_from_elsewhere(name: str) -> None:
    text = port(LIVE).get(f"{URL}/{name}").text
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+", text))
    assert addresses <= set()
    assert "innerHTML" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_files_count_as_the_report_where_requests_are_turned_away() -> None:
    app = new_app()
    WorkerSizing(app)
    current.apps.add(app)
    assert all(is_report_path(f"/lms{URL}/{name}") for name in FILES)
    assert not is_report_path(f"{URL}/page.html")


def test_page_is_imported_when_it_is_first_opened() -> None:
    code = (
        "import sys; from flask import Flask; from flask_workersize import WorkerSizing\n"
        "app = Flask('lms'); WorkerSizing(app); client = app.test_client()\n"
        "part = 'flask_workersize.health.page'\n"
        f"client.get('{URL}'); assert part not in sys.modules\n"
        f"client.get('{URL}', headers={{'Accept': 'text/html'}}); assert part in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What it shows


def test_page_is_filled_without_script_and_refreshes_itself() -> None:
    text = shown(FULL)
    assert re.search(r'<noscript><meta http-equiv="refresh" content="\d"></noscript>', text)
    assert "<title" in text
    assert "2 of 3 busy" in text
    for line in (FULL["why"]["cpu"], FULL["why"]["memory"], *FULL["advice"]):
        assert line in text
    for event in FULL["events"]:
        assert event["text"] in text
    for worker in FULL["processes"]:
        assert f'<th scope="row">{worker["pid"]}</th>' in text
    assert text.count("<rect") == 60 + 4 + 1


def test_what_is_not_told_is_not_shown() -> None:
    parts = view(PLAN, NOW)
    assert {"busy", "workers", "advice", "events", "slots"}.isdisjoint(parts)
    assert "token" in words(parts["ask"])
    assert parts["marks"] == []
    text = shown(PLAN)
    assert 'data-needs="busy" hidden' in text
    assert 'data-needs="workers ask">' in text


def test_app_that_flask_workersize_does_not_serve_asks_for_no_token() -> None:
    assert "did not start this process" in words(view(PLAN | {"serving": False}, NOW)["ask"])


@pytest.mark.parametrize("name", ["events", "advice", "warnings", "notes", "error"])
def test_texts_from_elsewhere_stay_texts(name: str) -> None:
    texts: Any = [{"at": NOW, "text": MARKUP}] if name == "events" else [MARKUP]
    report = FULL | {name: texts}
    if name == "error":
        parts = view({"status": "fail", "error": MARKUP}, NOW)
        assert parts["error"] == [MARKUP]
        return
    text = shown(report)
    assert "<script>alert" not in text
    assert MARKUP in Page(text).texts


def test_each_slot_is_a_box_and_one_over_the_timeout_is_marked() -> None:
    report = LIVE | {"slots": 6, "busy": 4, "running": [120.5, 119.0, 0.0042]}
    boxes: Any = view(report, NOW)["slots"]
    assert [(box[1]["class"], words([box])) for box in boxes] == [
        ("over", "2 min"),
        ("busy", "2 min"),
        ("busy", "4.2 ms"),
        ("held", "client"),
        ("free", "free"),
        ("free", "free"),
    ]
    boxes = view(report | {"timeout_seconds": None}, NOW)["slots"]
    assert boxes[0][1]["class"] == "busy"
    boxes = view(report | {"slots": 160}, NOW)["slots"]
    assert (len(boxes), words([boxes[-1]])) == (97, "64 more")


@pytest.mark.parametrize(
    ("limited_by", "title"),
    [("cpu", "CPU"), ("memory", "Memory"), ("explicit", "Setting"), ("max_workers", "Setting")],
)
def test_bound_that_binds_is_marked(limited_by: str, title: str) -> None:
    rows: Any = view(PLAN | {"limited_by": limited_by}, NOW)["why"]
    pairs = [(words([term]), words([value])) for term, value in zip(*[iter(rows)] * 2, strict=True)]
    assert [term for term, value in pairs if value.endswith("binds")] == [title]


def test_setting_that_sets_the_size_is_named_with_the_token() -> None:
    report = FULL | {"limited_by": "explicit", "sources": {"workers": "NOW_LMS_WORKERS"}}
    assert "set by hand: NOW_LMS_WORKERS" in words(view(report, NOW)["why"])


def test_bounds_of_an_adaptive_size_are_shown() -> None:
    within = "1 to 3 workers × 1 to 64 threads"
    rows = view(PLAN | {"why": PLAN["why"] | {"adapts": within}}, NOW)["why"]
    assert f"within {within}" in words(rows)


@pytest.mark.parametrize(
    ("history", "says"), [(FULL["history"], "Nothing to do"), (None, "Unknown")]
)
def test_nothing_to_do_is_only_said_if_there_are_figures(history: Any, says: str) -> None:
    assert says in words(view(FULL | {"advice": [], "history": history}, NOW)["advice"])


def ends(bars: Any) -> list[tuple[str, float]]:
    """Return what is drawn, and where each of it ends, in percent."""
    places = [(bar[1]["class"], bar[1]["x"], bar[1]["width"]) for bar in bars]
    return [(css, float(x[:-1]) + float(width[:-1])) for css, x, width in places]


def test_memory_bar_adds_up_to_what_is_used() -> None:
    parts = view(FULL, NOW)
    drawn = ends(parts["memory"])
    assert [css for css, _ in drawn] == ["shared", "worker", "worker", "worker"]
    assert drawn[-1][1] == pytest.approx(100 * 136 / 512, abs=0.05)
    assert words(parts["legend"]) == (
        "shared and others 81 MB3 workers (17, 17, 21) 55 MBfree 376 MB"
    )
    marks: Any = parts["marks"]
    assert [(mark[1]["x"], words([mark])) for mark in marks if mark[0] == "text"] == [
        ("70.00%", "70 % recycle"),
        ("90.00%", "90 %"),
    ]


def test_memory_bar_without_the_token_has_no_workers_and_without_live_figures_the_plan() -> None:
    assert [css for css, _ in ends(view(LIVE, NOW)["memory"])] == ["shared"]
    planned = view(PLAN, NOW)
    assert ends(planned["memory"])[-1][1] == pytest.approx(100 * 141 / 512, abs=0.05)
    assert words(planned["memory-note"]).startswith("Planned: 141 MB of 512 MB")


def test_memory_above_the_limit_stays_in_the_picture() -> None:
    parts = view(FULL | {"memory_used_mb": 600, "guard": "critical"}, NOW)
    assert max(end for _, end in ends(parts["memory"])) == pytest.approx(100, abs=0.05)
    assert "the kernel may kill" in words(parts["memory-note"])
    assert view(FULL | {"guard": "off"}, NOW)["marks"] == []


def test_last_hour_has_a_bar_a_minute_and_marks_those_in_which_requests_waited() -> None:
    bars: Any = view(LIVE, NOW)["bars"]
    assert len(bars) == 60
    waited = [place for place, bar in enumerate(bars) if bar[1].get("class") == "waited"]
    assert waited == list(range(12, 18))
    # A server that has just started fills the picture from the right.
    one: Any = view(LIVE | {"history": LIVE["history"][:1]}, NOW)["bars"][0]
    assert one[1]["x"] == "98.33%"


def test_events_come_newest_first_with_their_age() -> None:
    first: Any = view(LIVE, NOW)["events"][0]
    assert words([first]) == f"13:52 UTC21 min ago{LIVE['events'][-1]['text']}"
    assert first[2][0][1]["datetime"] == "2026-09-21T13:52:20Z"


def test_waiting_requests_and_a_full_server_stand_out() -> None:
    parts = view(LIVE | {"busy": 3, "queued": 17}, NOW)
    assert parts["busy"][0] == ("strong", {"class": "full"}, ["3"])
    assert parts["queued"][0] == ("strong", {"class": "full"}, ["17"])
    assert view(LIVE | {"queued": None}, NOW)["queued"][0] == ("strong", {}, ["–"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00004, "0 ms"),
        (0.0042, "4.2 ms"),
        (0.00425, "4.3 ms"),
        (0.012, "12 ms"),
        (0.9994, "999 ms"),
        (1.0, "1 s"),
        (59.4, "59 s"),
        (59.5, "1 min"),
        (3569, "59 min"),
        (3570, "1 h"),
        (172_799, "48 h"),
        (172_800, "2 d"),
        (1e9, "11,574 d"),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_numbers_are_rounded_half_up_as_the_script_does() -> None:
    assert [number(value) for value in (0, 0.25, 2.5, 9.96, 82.5, 1234.5)] == [
        "0", "0.3", "2.5", "10", "83", "1,235",
    ]  # fmt: skip
    assert [percent(value) for value in (0, 0.00125, 0.5, 1)] == [
        "0.00%", "0.13%", "50.00%", "100.00%",
    ]  # fmt: skip
