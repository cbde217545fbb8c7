"""``/_health/capacity``: answered to anyone, past every guard, opening nothing but the report."""

from __future__ import annotations

import json
import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from flask import Flask, Response, redirect, session, url_for
from flask.sessions import SecureCookieSessionInterface
from pydantic import SecretStr
from werkzeug.test import Client, EnvironBuilder

import flask_workersize
from flask_workersize import CapacityReport, WorkerSizeConfigError, WorkerSizing
from flask_workersize.app_state import adopt
from flask_workersize.health.blueprint import CapacityShortcut, capacity_blueprint
from flask_workersize.health.endpoint import CapacityEndpoint
from flask_workersize.runtime.deployment import Deployment, current
from flask_workersize.runtime.meter import SLOT_KEY, Meter
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import State
from flask_workersize.sizing.plan import compute_plan
from tests.health.snapshots import DETAILS, LIVE, row
from tests.health.snapshots import live as live_figures
from tests.plain import SECRET, clear_environment, load, new_app, plan, resources

URL = "/_health/capacity"
METRICS = f"{URL}/metrics"
PLAN = plan({"THREADS": "2"}, memory_mb=1024)
BEARER = {"Authorization": f"Bearer {SECRET}"}
FLASK = tuple(int(part) for part in version("flask").split(".")[:2])


def report(details: bool, live: bool, asking: int | None) -> CapacityReport:
    now = live_figures(row((1.0,)), row()) if live else None
    return CapacityReport.of(PLAN, serving=True, details=details, now=now)


def endpoint(token: str | None = None, is_inside: bool = False) -> CapacityEndpoint:
    return CapacityEndpoint(report, lambda: SecretStr(token) if token else None, is_inside)


def asked(token: str | None, header: str | None) -> dict[str, Any]:
    """Return the report that this Authorization header gets, as WSGI hands it over."""
    environ = {} if header is None else {"HTTP_AUTHORIZATION": header}
    answer = endpoint(token).report(environ)
    assert answer.status == "200 OK"
    shown: dict[str, Any] = json.loads(answer.data)
    return shown


def wsgi(text: str) -> str:
    """Return a text as WSGI hands over its bytes."""
    return text.encode().decode("latin-1")


class RecordingSessions(SecureCookieSessionInterface):
    """Sessions of Flask that say when one is opened."""

    def __init__(self) -> None:
        self.opened = 0

    def open_session(self, *args: Any) -> Any:
        self.opened += 1
        return super().open_session(*args)


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody launched this process, and no variable is set."""
    clear_environment(monkeypatch)
    monkeypatch.setattr(current, "deployment", None)


@pytest.fixture
def sessions() -> RecordingSessions:
    return RecordingSessions()


@pytest.fixture
def app(sessions: RecordingSessions) -> Flask:
    """Return an app with what stands in the way of a probe."""
    app = new_app(HEALTH_TOKEN=SECRET)
    app.secret_key = SECRET
    app.session_interface = sessions

    @app.before_request
    def count_visits() -> None:
        session["visits"] = session.get("visits", 0) + 1

    @app.before_request
    def log_in() -> Any:
        return redirect("https://lms.example/login")

    @app.after_request
    def name_the_server(response: Response) -> Response:
        response.headers["X-Guard"] = "passed"
        return response

    WorkerSizing(app)
    return app


# Who is answered, and how


def test_get_is_answered_in_json(app: Flask) -> None:
    response = app.test_client().get(URL)
    assert response.status == "200 OK"
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.content_length == len(response.data)
    assert CapacityReport.model_validate_json(response.data).server == "waitress"


def test_head_is_answered_like_get_without_the_body(app: Flask) -> None:
    client = app.test_client()
    head, get = client.head(URL), client.get(URL)
    assert head.data == b""
    assert (head.status, list(head.headers)) == (get.status, list(get.headers))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_not_allowed(method: str) -> None:
    app = new_app()
    WorkerSizing(app)
    response = app.test_client().open(URL, method=method)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize("path", [f"{URL}/", f"{URL}/more", "/_health", "/x" + URL])
def test_only_the_exact_path_is_answered(path: str) -> None:
    app = new_app()
    WorkerSizing(app)
    assert app.test_client().get(path).status_code == 404


def test_query_does_not_matter(app: Flask) -> None:
    assert app.test_client().get(f"{URL}?verbose=1").status_code == 200


def test_path_outside_ascii_is_answered_past_the_guards() -> None:
    app = new_app(HEALTH_URL="/größe")
    app.before_request(lambda: redirect("/login"))
    WorkerSizing(app)
    assert app.test_client().get("/größe").status_code == 200


# What does not stand in the way


def test_login_redirect_does_not_stand_in_the_way(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/").status_code == 302
    response = client.get(URL)
    assert response.status_code == 200
    assert "X-Guard" not in response.headers


@pytest.mark.skipif(FLASK < (3, 1), reason="Flask knows TRUSTED_HOSTS since 3.1")
def test_trusted_hosts_do_not_stand_in_the_way() -> None:
    app = new_app()
    app.config["TRUSTED_HOSTS"] = ["lms.example"]
    WorkerSizing(app)
    client = app.test_client()
    assert client.get("/", base_url="http://10.0.0.7:8080").status_code == 400
    assert client.get(URL, base_url="http://10.0.0.7:8080").status_code == 200


def test_no_session_is_opened_and_no_cookie_set(app: Flask, sessions: RecordingSessions) -> None:
    client = app.test_client()
    for response in (client.get(URL), client.head(URL)):
        assert "Set-Cookie" not in response.headers
    assert sessions.opened == 0
    client.get("/")
    assert sessions.opened == 1


def test_machine_is_not_asked_for_a_request(
    app: Flask, deployment: Deployment, board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_again(*_: Any, **__: Any) -> None:
        pytest.fail("psutil was asked")

    for name in ("virtual_memory", "cpu_count", "Process", "process_iter", "pids"):
        monkeypatch.setattr(psutil, name, asked_again)
    adopt(app, deployment, board)
    client = Client(app)
    assert "pid" in client.get(URL, headers=BEARER).get_json()
    assert client.get(METRICS, headers=BEARER).status_code == 200


@pytest.mark.parametrize("path", [URL, METRICS])
def test_route_of_the_blueprint_answers_the_same(path: str) -> None:
    """Where something that the app puts around itself changes the path, for example."""
    app = Flask("lms")
    app.register_blueprint(capacity_blueprint(endpoint(SECRET), URL))
    plain = Client(app)
    shortcut = Client(CapacityShortcut(app.wsgi_app, endpoint(SECRET), URL))
    for header in ({}, BEARER):
        for method in ("GET", "HEAD"):
            one = plain.open(path, method=method, headers=header)
            other = shortcut.open(path, method=method, headers=header)
            assert (one.status, one.data) == (other.status, other.data)
            assert dict(one.headers) == dict(other.headers)


def test_app_owns_the_route() -> None:
    app = new_app()
    WorkerSizing(app)
    with app.test_request_context():
        assert url_for("workersize.capacity") == URL
        assert url_for("workersize.metrics") == METRICS
    environ = EnvironBuilder(URL).get_environ()
    bypassed = Client(lambda _, start: Flask.wsgi_app(app, environ, start)).get()
    assert bypassed.status_code == 200
    assert bypassed.data == app.test_client().get(URL).data


# The token


@pytest.mark.parametrize(
    ("token", "header"),
    [
        (SECRET, f"Bearer {SECRET}"),
        (SECRET, f"bearer  {SECRET} "),
        (SECRET, f"BEARER {SECRET}"),
        ("two words", "Bearer two words"),
        ("schlüssel", wsgi("Bearer schlüssel")),
        ("ключ", wsgi("Bearer ключ")),
        ("voilà", wsgi("Bearer voilà")),  # its last byte is a space in latin-1
        ("\udce9t\udce9", "Bearer \xe9t\xe9"),  # bytes of the environment that are no UTF-8
    ],
)
def test_right_token_opens_the_details(token: str, header: str) -> None:
    assert asked(token, header).keys() >= DETAILS


@pytest.mark.parametrize(
    ("token", "header"),
    [
        (None, None),
        (None, "Bearer "),
        (None, "Bearer None"),
        (None, f"Bearer {SECRET}"),
        (SECRET, None),
        (SECRET, ""),
        (SECRET, "Bearer"),
        (SECRET, "Bearer "),
        (SECRET, SECRET),
        (SECRET, f"Basic {SECRET}"),
        (SECRET, f"Bearer {SECRET}x"),
        (SECRET, f"Bearer {SECRET[:-1]}"),
        (SECRET, f"Bearer {SECRET.upper()}"),
        (SECRET, "Bearer **********"),
        (SECRET, "Bearer \xff\xfe"),
        (SECRET, "Bearer ключ"),  # no WSGI server hands this over
        ("schlüssel", "Bearer schlüssel"),  # in latin-1, not UTF-8
    ],
)
def test_any_other_token_opens_nothing(token: str | None, header: str | None) -> None:
    assert asked(token, header).keys().isdisjoint(DETAILS)


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_token_of_the_environment_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.setenv("NOW_LMS_HEALTH_TOKEN", empty)
    app = new_app()
    WorkerSizing(app)
    for sent in ("", empty, "None"):
        response = app.test_client().get(URL, headers={"Authorization": f"Bearer {sent}"})
        assert DETAILS.isdisjoint(response.get_json())


def test_token_of_the_environment_opens_the_details(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOW_LMS_HEALTH_TOKEN", SECRET)
    app = new_app()
    WorkerSizing(app)
    shown = app.test_client().get(URL, headers=BEARER).get_json()
    assert shown.keys() >= DETAILS
    assert shown["pid"] == os.getpid()


# What is happening now


class Asked:
    """Makes reports, and remembers what for."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, bool, int | None]] = []

    def __call__(self, details: bool, live: bool, asking: int | None) -> CapacityReport:
        self.calls.append((details, live, asking))
        return report(details, live, asking)


@pytest.mark.parametrize(
    ("is_inside", "token", "details", "live"),
    [
        (False, "", False, False),
        (False, "wrong", False, False),
        (False, SECRET, True, True),
        (True, "", False, True),
        (True, "wrong", False, True),
        (True, SECRET, True, True),
    ],
)
def test_live_figures_need_the_token_only_where_everybody_comes_and_the_rows_everywhere(
    is_inside: bool, token: str, details: bool, live: bool
) -> None:
    maker = Asked()
    environ = {"HTTP_AUTHORIZATION": f"Bearer {token}"} if token else {}
    answer = CapacityEndpoint(maker, lambda: SecretStr(SECRET), is_inside).report(environ)
    assert maker.calls == [(details, live, None)]
    shown = json.loads(answer.data)
    assert (shown.keys() >= LIVE) is live
    assert ("processes" in shown) is details


def test_request_that_asks_is_named_so_that_it_does_not_count() -> None:
    maker = Asked()
    made = CapacityEndpoint(maker, lambda: None, is_inside=True)
    for answer in (made.report, made.metrics):
        answer({SLOT_KEY: 42})
    assert [asking for _, _, asking in maker.calls] == [42, 42]


@pytest.fixture
def deployment() -> Deployment:
    """Return a deployment of two workers, of which one is there."""
    settings = load({"WSGI_SERVER": "gunicorn", "WORKERS": "2", "THREADS": "2"})
    machine = resources()
    return Deployment(settings, machine, compute_plan(settings, machine))


@pytest.fixture
def board() -> Scoreboard:
    """Return its scoreboard."""
    board = Scoreboard(2, 2)
    board.state = State.SERVING
    return board


@pytest.fixture
def served(app: Flask, deployment: Deployment, board: Scoreboard) -> Client:
    """Return a client of the app that is served by a metered worker."""
    taken = board.allocate(1)
    assert taken is not None
    taken.enter()
    taken.set_ready()
    adopt(app, deployment, board)
    return Client(Meter(app, taken))


def test_served_app_tells_what_is_happening_now_with_the_token(served: Client) -> None:
    served.get("/").close()
    shown = served.get(URL, headers=BEARER).get_json()
    assert shown.keys() >= LIVE | DETAILS
    assert (shown["workers_alive"], shown["slots"], shown["served"]) == (1, 2, 1)
    assert shown["busy"] == 0, "the request that asks does not count"
    (worker,) = shown["processes"]
    assert worker["pid"] == shown["pid"] == os.getpid()


def test_served_app_tells_anybody_else_only_the_plan(served: Client) -> None:
    shown = served.get(URL).get_json()
    assert shown["serving"] is True
    assert shown.keys().isdisjoint(LIVE | DETAILS | {"processes"})


def test_served_app_tells_of_workers_of_which_it_is_none(served: Client, board: Scoreboard) -> None:
    """One truth, whichever worker answers."""
    other = board.allocate(2)
    assert other is not None
    Client(Meter(Response("done"), other)).get("/").close()
    shown = served.get(URL, headers=BEARER).get_json()
    assert (shown["workers_alive"], shown["served"]) == (2, 1)
    assert [worker["served"] for worker in shown["processes"]] == [0, 1]


def test_app_that_nobody_serves_has_no_live_figures(app: Flask) -> None:
    shown = app.test_client().get(URL, headers=BEARER).get_json()
    assert shown.keys() >= DETAILS
    assert shown.keys().isdisjoint(LIVE | {"processes"})


# Metrics


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}])
def test_metrics_on_the_port_of_the_app_need_the_token(app: Flask, header: dict[str, str]) -> None:
    response = app.test_client().get(METRICS, headers=header)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    (line,) = response.text.splitlines()
    assert "NOW_LMS_HEALTH_TOKEN" in line
    assert SECRET not in line


def test_metrics_without_a_token_in_the_settings_are_opened_to_nobody() -> None:
    app = new_app()
    WorkerSizing(app)
    for sent in ("", "Bearer ", "Bearer None"):
        assert app.test_client().get(METRICS, headers={"Authorization": sent}).status_code == 401


def test_metrics_are_told_with_the_token(served: Client) -> None:
    response = served.get(METRICS, headers=BEARER)
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain; version=0.0.4")
    assert response.headers["Cache-Control"] == "no-store"
    assert "\nworkersize_workers 1.0\n" in response.text
    assert "\nworkersize_slots_busy 0.0\n" in response.text


def test_metrics_are_told_in_the_format_that_is_asked_for(served: Client) -> None:
    header = {**BEARER, "Accept": "application/openmetrics-text; version=1.0.0"}
    response = served.get(METRICS, headers=header)
    assert response.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")


def test_head_of_metrics_has_no_body(served: Client) -> None:
    response = served.head(METRICS, headers=BEARER)
    assert (response.status_code, response.data) == (200, b"")


def test_metrics_inside_need_no_token() -> None:
    answer = endpoint(SECRET, is_inside=True).metrics({})
    assert answer.status == "200 OK"
    assert b"\nworkersize_slots_busy 1.0\n" in answer.data


def test_metrics_are_never_those_of_one_worker(
    app: Flask, deployment: Deployment, board: Scoreboard
) -> None:
    """No rows, and so no label by process: their number would grow with each restart."""
    taken = board.allocate(1)
    assert taken is not None
    taken.enter()
    adopt(app, deployment, board)
    text = Client(Meter(app, taken)).get(METRICS, headers=BEARER).text
    assert str(os.getpid()) not in text
    assert "pid" not in text


@pytest.mark.parametrize("answer", ["report", "metrics"])
def test_settings_that_are_not_valid_are_said_in_one_line(answer: str) -> None:
    def refuse(details: bool, live: bool, asking: int | None) -> CapacityReport:
        raise WorkerSizeConfigError("THREADS is not a whole number.")

    made = CapacityEndpoint(refuse, lambda: None, is_inside=True)
    told: Response = getattr(made, answer)({})
    assert told.status == "500 INTERNAL SERVER ERROR"
    (line,) = told.data.decode().splitlines()
    assert "THREADS is not a whole number." in line


def test_metrics_follow_the_path_of_the_report() -> None:
    app = new_app(HEALTH_URL="/größe", HEALTH_TOKEN=SECRET)
    app.before_request(lambda: redirect("/login"))
    WorkerSizing(app)
    client = app.test_client()
    assert client.get("/größe/metrics").status_code == 401
    assert client.get("/größe/metrics", headers=BEARER).status_code == 200
    assert client.get(METRICS).status_code == 302


# What nobody is told


def test_nothing_secret_is_told_even_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"NOW_LMS_HOST": "192.0.2.77", "NOW_LMS_PORT": "43219", "NOW_LMS_HEALTH_TOKEN": SECRET}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    app = new_app(BIND=f"unix:/run/{SECRET}.sock")
    WorkerSizing(app)
    text = app.test_client().get(URL, headers={"Authorization": f"Bearer {SECRET}"}).text
    secrets = [
        *values.values(),
        str(Path(flask_workersize.__file__).parent),
        app.root_path,
        os.getcwd(),
        socket.gethostname(),
        platform.python_version(),
        *[version(name) for name in ("flask", "gunicorn", "waitress", "pydantic")],
    ]
    assert [secret for secret in secrets if secret in text] == []
    assert "/" not in text.replace(" MB available / 200 MB a worker", "")


def test_log_never_shows_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    app = new_app(HEALTH_TOKEN=SECRET)
    WorkerSizing(app)
    for sent in (SECRET, SECRET + "x"):
        app.test_client().get(URL, headers={"Authorization": f"Bearer {sent}"})
    app.test_cli_runner().invoke(args=["serve-prod", "--dry-run"])
    assert SECRET not in caplog.text
