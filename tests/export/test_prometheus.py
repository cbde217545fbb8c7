"""A real Prometheus scrapes a real server: no query of the dashboard or the rules is empty."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_workersize.export.render import render
from tests.export.intents import intent
from tests.servers.serving import Server, await_that, serve_prod, starter

pytestmark = pytest.mark.fleet


class Prometheus:
    """A Prometheus in a folder, which scrapes one server each second."""

    def __init__(self, folder: Path, target: str) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not installed")
        for name, text in render("prometheus", intent()).items():
            here = re.sub(r"targets: \[.*\]", f'targets: ["{target}"]', text)
            (folder / name).write_text(here.replace("scrape_interval: 15s", "scrape_interval: 1s"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = "{}:{}".format(*free.getsockname())
        options = {
            "config.file": "prometheus.yml",
            "storage.tsdb.path": "data",
            "web.listen-address": self._address,
        }
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, *(f"--{name}={value}" for name, value in options.items())],
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
        )

    def ask(self, query: str) -> Any:
        """Return what a query finds; nothing before it answers."""
        text = urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{text}") as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with starter(tmp_path_factory.mktemp("server")) as start:
        command = serve_prod(server="gunicorn")
        yield start(command, NOW_LMS_WORKERS="2", NOW_LMS_HEALTH_PORT="0").await_ready()


def queries() -> list[str]:
    """Return every query that is exported: of alerts, what is compared."""
    board = json.loads(render("grafana", intent())["dashboard.json"])
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load(render("prometheus", intent())["workersize-rules.yml"])
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return [query.replace("$__rate_interval", "1m") for query in shown] + [
        side for query in alerts for side in re.split(r" (?:[<>]|==) ", query) if "{" in side
    ]


def test_every_query_finds_something(server: Server, tmp_path: Path) -> None:
    prometheus = Prometheus(tmp_path, urllib.parse.urlsplit(server.health_url).netloc)
    try:
        await_that(lambda: bool(prometheus.ask('up{job="lms"} == 1')), "scraped")
        for _ in range(5):
            server.get("/")
        rate = "rate(workersize_requests_total[1m]) > 0"
        await_that(lambda: bool(prometheus.ask(rate)), "scraped again")
        asked = queries()
        assert len(asked) > 15
        empty = [query for query in asked if not query.startswith("workersize:")]
        empty = [query for query in empty if not prometheus.ask(query)]
        assert empty == []
        assert prometheus.ask("workersize_no_such_metric") == []
    finally:
        prometheus.close()
