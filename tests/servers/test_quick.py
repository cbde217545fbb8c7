"""Each server, started, asked and stopped once: what the quick part of the tests has of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plain import SECRET
from tests.servers.serving import CONF, Starter, await_that, gunicorn, serve_prod

BEARER = [("Authorization", f"Bearer {SECRET}")]
SYNC = ["--workers", "2"]
GTHREAD = ["--workers", "1", "--threads", "2"]


@pytest.mark.parametrize(
    ("command", "environ", "slots"),
    [
        (serve_prod("--threads", "2", server="waitress"), {}, 2),
        (serve_prod(*SYNC, server="gunicorn"), {}, 2),
        (serve_prod(*GTHREAD, server="gunicorn"), {}, 2),
        (serve_prod(*SYNC, server="gunicorn"), {"NOW_LMS_PRELOAD": "off"}, 2),
        (gunicorn("-c", CONF), {"NOW_LMS_WORKERS": "2"}, 2),
    ],
    ids=["waitress", "sync", "gthread", "preload off", "gunicorn itself"],
)
def test_server_starts_answers_reports_and_stops(
    start: Starter, command: list[str], environ: dict[str, str], slots: int
) -> None:
    server = start(command, NOW_LMS_HEALTH_TOKEN=SECRET, **environ)
    assert server.get("/").status == 200

    def report() -> dict[str, Any]:
        told: dict[str, Any] = server.get("/_health/capacity", BEARER).json()
        return told

    await_that(lambda: report()["slots"] == slots, "every worker is there")
    assert report()["serving"] is True
    assert report()["served"] >= 1
    assert server.stop() == 0
    assert "Traceback" not in server.stdout + server.stderr
    assert SECRET not in server.stdout + server.stderr
