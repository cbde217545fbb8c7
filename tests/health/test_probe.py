"""The health port: when a server is live and when it is ready, and what else is answered there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from werkzeug.test import Client, TestResponse

from flask_workersize import compute_plan
from flask_workersize.app_state import WorkerSizingState
from flask_workersize.health.endpoint import CapacityEndpoint
from flask_workersize.health.probe import ProbeApp, ProbeRules
from flask_workersize.runtime.deployment import Deployment
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import GuardState, Snapshot, State, WorkerStats
from tests.health.snapshots import row, snapshot
from tests.plain import SECRET, load, resources

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

RULES = ProbeRules(timeout_seconds=120)
LONG = 120.5
REPORTS = ["/live", "/ready", "/metrics", "/_health/capacity", "/_health/capacity/metrics"]
PATHS = [*REPORTS, "/_health/capacity/page.css", "/_health/capacity/page.js"]

idle = row()
busy = row((1.0, 2.0))
half = row((LONG,))
stuck = row((LONG, LONG + 1))
silent = row(silent_seconds=LONG)
booting = row(is_ready=False, silent_seconds=5.0)
never_booted = row(is_ready=False, silent_seconds=LONG)


# Workers that make no progress


@pytest.mark.parametrize(
    ("worker", "is_stuck"),
    [
        (idle, False),
        (busy, False),
        (half, False),  # one request takes long, and there is a free slot
        (row((LONG, 1.0)), False),  # the other slot makes progress
        (stuck, True),
        (row((120.0, 120.0)), False),  # not longer than the timeout
        (silent, True),
        (row((1.0,), silent_seconds=LONG), True),  # a free slot, and nobody to use it
        (row((1.0, 1.0), silent_seconds=LONG), False),  # a sync worker is silent while it works
        (row(held=2), False),  # it waits for its clients
        (row(held=2, silent_seconds=LONG), True),
        (booting, False),
        (never_booted, True),
        (row((1.0, 1.0), is_ready=False, silent_seconds=LONG), True),
    ],
)
def test_worker_is_stuck_where_neither_its_requests_nor_its_main_loop_go_on(
    worker: WorkerStats, is_stuck: bool
) -> None:
    assert RULES.is_stuck(worker) is is_stuck


@pytest.mark.parametrize("worker", [idle, busy, half, stuck, silent, booting, never_booted])
def test_no_worker_is_stuck_without_a_timeout(worker: WorkerStats) -> None:
    assert not ProbeRules(timeout_seconds=0).is_stuck(worker)


# Live


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (snapshot(idle), None),
        (snapshot(busy, busy), None),
        (snapshot(stuck), "no worker makes progress"),
        (snapshot(stuck, silent), "no worker makes progress"),
        (snapshot(stuck, idle), None),
        (snapshot(stuck, busy), None),
        (snapshot(stuck, booting), None),
        (snapshot(booting), None),
        (snapshot(never_booted), "no worker makes progress"),
        (snapshot(), "no worker runs"),
        (snapshot(state=State.STARTING), None),
        (snapshot(booting, state=State.STARTING), None),
        (snapshot(never_booted, state=State.STARTING), "no worker makes progress"),
        (snapshot(state=State.DRAINING), None),
        (snapshot(state=State.STOPPING), None),
        (snapshot(busy, state=State.DRAINING), None),
        (snapshot(busy, state=State.STOPPING), None),
        (snapshot(stuck, state=State.STOPPING), "no worker makes progress"),
        (snapshot(idle, guard=GuardState.CRITICAL), None),
    ],
)
def test_server_is_live_while_one_worker_makes_progress_or_none_has_to(
    now: Snapshot, reason: str | None
) -> None:
    assert RULES.not_live(now) == reason


def test_server_stays_live_without_a_timeout() -> None:
    assert ProbeRules(timeout_seconds=0).not_live(snapshot(stuck, silent)) is None


def test_server_without_workers_is_not_live_without_a_timeout_either() -> None:
    assert ProbeRules(timeout_seconds=0).not_live(snapshot()) == "no worker runs"


# Ready


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (snapshot(idle), None),
        (snapshot(busy), None),
        (snapshot(booting, idle), None),
        (snapshot(booting), "no worker is ready"),
        (snapshot(), "no worker is ready"),
        (snapshot(stuck), "no worker makes progress"),
        (snapshot(stuck, idle), None),
        (snapshot(idle, guard=GuardState.WARN), None),
        (snapshot(idle, guard=GuardState.CRITICAL), "memory"),
        (snapshot(idle, state=State.STARTING), "starting"),
        (snapshot(idle, state=State.DRAINING), "draining"),
        (snapshot(idle, state=State.STOPPING), "stopping"),
        (snapshot(idle, state=State.STOPPED), "stopped"),
    ],
)
def test_server_is_ready_while_it_serves_and_a_worker_is_there(
    now: Snapshot, reason: str | None
) -> None:
    assert RULES.not_ready(now) == reason


def test_saturated_server_is_live_and_ready() -> None:
    """Every instance would be taken out of service at once."""
    assert RULES.not_live(snapshot(busy)) is None
    assert RULES.not_ready(snapshot(busy)) is None


# The port


class Port:
    """The health port of a server that was decided on, without a server.

    :param environ: what the operator asked for
    """

    def __init__(self, **environ: str) -> None:
        settings = load({"WSGI_SERVER": "gunicorn", "WORKERS": "2", **environ})
        machine = resources()
        plan = compute_plan(settings, machine)
        state = WorkerSizingState(machine, settings, plan, serving=True)
        state.deployment = self.deployment = Deployment(settings, machine, plan)
        state.board = self.board = Scoreboard(2, plan.threads)
        endpoint = CapacityEndpoint(state.report, lambda: SecretStr(SECRET), is_inside=True)
        self.app = ProbeApp(endpoint, self.board.read, ProbeRules(settings.timeout))

    def serve(self, ready: int = 2) -> None:
        """Let workers be there that have loaded the app."""
        for age in range(1, ready + 1):
            taken = self.board.allocate(age)
            assert taken is not None
            taken.enter()
            taken.set_ready()
        self.board.state = State.SERVING

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return Client(self.app).get(path, **kwargs)


def sent(app: WSGIApplication, path: str, method: str = "GET") -> tuple[str, bytes]:
    """Return the status and the body of an answer, without a client that tidies the request."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method}
    environ |= {"SCRIPT_NAME": "", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    statuses: list[str] = []

    def start(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda data: None

    response: Any = app(environ, start)
    body = b"".join(response)
    if hasattr(response, "close"):
        response.close()
    (status,) = statuses
    return status, body


def test_probes_say_what_they_found() -> None:
    port = Port()
    port.serve()
    for path in ("/live", "/ready"):
        response = port.get(path)
        assert response.status == "200 OK"
        assert response.json == {
            "status": "pass",
            "reason": None,
            "workers_alive": 2,
            "workers_ready": 2,
            "workers_stuck": 0,
        }


def test_all_answers_are_written_alike() -> None:
    port = Port()
    port.serve()
    for path in ("/live", "/ready", "/_health/capacity", "/none"):
        text = port.get(path).text
        compact = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
        assert text == compact


def test_probe_that_fails_is_503_and_says_why() -> None:
    port = Port()
    response = port.get("/ready")
    assert response.status == "503 SERVICE UNAVAILABLE"
    assert (response.json or {})["status"] == "fail"
    assert (response.json or {})["reason"] == "starting"
    assert port.get("/live").status_code == 200


def test_ready_turns_with_the_state_of_the_server() -> None:
    port = Port()
    port.serve()
    statuses = []
    for state in State:
        port.board.state = state
        statuses.append((port.get("/ready").status_code, port.get("/live").status_code))
    assert statuses == [(503, 200), (200, 200), (503, 200), (503, 200), (503, 200)]


def test_server_whose_workers_are_gone_is_not_live() -> None:
    port = Port()
    port.serve()
    port.board.sweep([])
    assert (port.get("/live").json or {})["reason"] == "no worker runs"


def test_live_figures_and_metrics_are_open_without_the_token() -> None:
    port = Port()
    port.serve()
    shown = port.get("/_health/capacity").json or {}
    assert (shown["workers_alive"], shown["serving"], shown["draining"]) == (2, True, False)
    assert "processes" not in shown
    for path in ("/metrics", "/_health/capacity/metrics"):
        families = text_string_to_metric_families(port.get(path).text)
        found = {sample.name: sample.value for family in families for sample in family.samples}
        assert found["workersize_workers"] == 2


def test_rows_need_the_token_on_this_port_too() -> None:
    port = Port()
    port.serve()
    header = {"Authorization": f"Bearer {SECRET}"}
    shown = port.get("/_health/capacity", headers=header).json or {}
    assert len(shown["processes"]) == 2
    wrong = port.get("/_health/capacity", headers={"Authorization": "Bearer no"}).json or {}
    assert "processes" not in wrong


@pytest.mark.parametrize("path", ["/", "", "/live/", "/ready/x", "/LIVE", "/_health", "//live"])
def test_any_other_path_is_404_and_says_which_there_are(path: str) -> None:
    """Also one that a client would never send as it is."""
    status, body = sent(Port().app, path)
    assert status == "404 NOT FOUND"
    assert json.loads(body) == {"paths": PATHS}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_any_other_method_is_405_and_says_which_there_are(path: str, method: str) -> None:
    response = Client(Port().app).open(path, method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert response.json == {"methods": ["GET", "HEAD"]}


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_head_is_answered_like_get_without_the_body(path: str) -> None:
    port = Port()
    head, get = Client(port.app).head(path), port.get(path)
    assert head.data == b""
    assert (head.status, head.headers["Content-Type"]) == (get.status, get.headers["Content-Type"])
    assert head.headers["Content-Length"].isdigit()


@pytest.mark.parametrize("path", REPORTS)
def test_query_does_not_matter_and_nothing_may_be_stored(path: str) -> None:
    port = Port()
    port.serve()
    response = port.get(f"{path}?verbose=1")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_port_keeps_to_wsgi(path: str, method: str) -> None:
    """``wsgiref.validate`` raises where it does not."""
    status, body = sent(validator(Port().app), path, method)
    assert status.partition(" ")[0] in ("200", "404", "503")
    assert bool(body) is (method == "GET")
