"""The snippets of the docs: what they say of ports, paths, variables and times is so."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from werkzeug.test import Client

from flask_workersize import CapacityReport, SizingSettings
from flask_workersize.health.endpoint import METRICS_SUFFIX, CapacityEndpoint
from flask_workersize.health.metrics import render
from flask_workersize.health.probe import ProbeApp, ProbeRules
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import GuardState, State
from flask_workersize.sizing.settings import DEFAULT_HEALTH_URL
from tests.plain import VARIABLES, plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.rst"))]
PLAN = plan({"THREADS": "2"})

APP_PATHS = {DEFAULT_HEALTH_URL, DEFAULT_HEALTH_URL + METRICS_SUFFIX}
HEALTH_PORT = 8081
"""The health port that the docs use throughout."""

GRACE_OF_KUBERNETES, GRACE_OF_DOCKER, GRACE_OF_SYSTEMD = 30, 10, 90
"""How long each waits before SIGKILL by default, in seconds."""

REALLY_ASKED = {"quickstart.rst"}
"""Pages whose servers are started and asked by a test of their own."""

FOREIGN = {"FLASK_APP"}
"""Variables that somebody else reads."""


@dataclass(frozen=True)
class Snippet:
    """A code block of a page.

    :param page: the file
    :param line: where it begins
    :param language: what it is written in
    :param caption: the file that it is part of, as far as the page says
    :param text: what it holds
    """

    page: str
    line: int
    language: str
    caption: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


_BLOCK = re.compile(
    r"^(?P<margin> *)\.\. code-block:: (?P<language>\w+)\n"
    r"(?P<options>(?:(?P=margin) +:\w.*\n)*)\n"
    r"(?P<body>(?:(?P=margin) +.*\n|\n)+)",
    re.M,
)


def snippets(*languages: str) -> list[Snippet]:
    return [
        Snippet(
            page.name,
            text.count("\n", 0, block.start()) + 1,
            block["language"],
            "".join(re.findall(r":caption: (.*)", block["options"])),
            re.sub(rf"^{block['margin']}    ", "", block["body"], flags=re.M),
        )
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for block in _BLOCK.finditer(text)
        if block["language"] in languages
    ]


def probe_app() -> tuple[ProbeApp, Scoreboard]:
    """Return what answers on the health port, for a server with one idle worker."""
    board = Scoreboard(1, PLAN.threads)
    row = board.allocate(1)
    assert row is not None
    row.set_ready()
    board.state = State.SERVING

    def report(details: bool, live: bool, asking: int | None) -> CapacityReport:
        return CapacityReport.of(PLAN, serving=True, now=replace(board.read(asking), connections=0))

    endpoint = CapacityEndpoint(report, lambda: SecretStr("t"), is_inside=True)
    return ProbeApp(endpoint, board.read, ProbeRules(120)), board


APP, BOARD = probe_app()
HEALTH_PATHS = set(Client(APP).get("/").get_json()["paths"])


def load(environ: Mapping[str, Any]) -> SizingSettings:
    """Return the settings of a snippet; its variables are known, and their values accepted."""
    assert set(environ) <= {*VARIABLES, *FOREIGN}
    assert all(isinstance(value, str) for value in environ.values()), "an unquoted number"
    settings = SizingSettings.load(environ=environ)
    assert settings.warnings == ()
    return settings


def stop_seconds(settings: SizingSettings) -> int:
    return settings.drain_seconds + settings.graceful_timeout


def check_port_and_path(port: int, path: str, settings: SizingSettings | None = None) -> None:
    """See that a port of the snippets answers this path."""
    if port == (HEALTH_PORT if settings is None else settings.health_port):
        assert path in HEALTH_PATHS
    else:
        assert port == (8080 if settings is None else settings.port)
        assert path in APP_PATHS | {""}


def seconds(text: str) -> float:
    """Return a duration of Compose or systemd in seconds."""
    match = re.fullmatch(r"([0-9]+)(s|m|min)?", text)
    assert match, text
    return int(match[1]) * (1 if match[2] in (None, "s") else 60)


# YAML


def documents() -> Iterator[tuple[Snippet, Any]]:
    for snippet in snippets("yaml"):
        for document in yaml.safe_load_all(snippet.text):
            yield snippet, document


def parts(tree: Any, key: str) -> Iterator[Any]:
    """Yield every mapping that has a key, however deep it is."""
    children: list[Any] = []
    if isinstance(tree, dict):
        if key in tree:
            yield tree
        children = list(tree.values())
    elif isinstance(tree, list):
        children = tree
    for child in children:
        yield from parts(child, key)


def found(key: str) -> pytest.MarkDecorator:
    """Return a parametrization over every mapping of the docs that has a key."""
    cases = [(snippet, part) for snippet, tree in documents() for part in parts(tree, key)]
    assert cases, key
    return pytest.mark.parametrize(
        ("snippet", "part"), cases, ids=[f"{snippet}-{i}" for i, (snippet, _) in enumerate(cases)]
    )


def test_every_yaml_snippet_is_of_a_kind_that_is_checked() -> None:
    kinds = (
        *("containers", "services", "scrape_configs", "podMetricsEndpoints", "targetPort"),
        "podSelector",
    )
    trees = list(documents())
    assert trees
    for snippet, tree in trees:
        assert isinstance(tree, dict), snippet
        assert any(any(parts(tree, kind)) for kind in kinds), snippet


def environment(container: Mapping[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", "x") for item in container.get("env", [])}


def ports(container: Mapping[str, Any]) -> dict[str, int]:
    return {item["name"]: item["containerPort"] for item in container.get("ports", [])}


@found("containers")
def test_pod_is_given_the_time_to_stop(snippet: Snippet, part: dict[str, Any]) -> None:
    (container,) = part["containers"]
    hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = part.get("terminationGracePeriodSeconds", GRACE_OF_KUBERNETES)
    assert grace > hook + stop_seconds(load(environment(container)))


@found("containers")
def test_pod_gets_no_variables_of_services(snippet: Snippet, part: dict[str, Any]) -> None:
    assert part["enableServiceLinks"] is False


@found("httpGet")
def test_probe_asks_a_path_that_is_there(snippet: Snippet, part: dict[str, Any]) -> None:
    """Each by the name of its port, which the container has."""
    (tree,) = [tree for place, tree in documents() if place == snippet and any(parts(tree, "env"))]
    (pod,) = parts(tree, "containers")
    (container,) = pod["containers"]
    settings = load(environment(container))
    asked = part["httpGet"]
    port = ports(container).get(asked["port"], asked["port"])
    assert port == settings.health_port
    check_port_and_path(port, asked["path"], settings)
    assert part.get("timeoutSeconds", 1) < part.get("periodSeconds", 10) + 1
    # Whoever asks comes from outside of the pod.
    assert settings.health_address == f"0.0.0.0:{port}"


@found("livenessProbe")
def test_each_probe_asks_its_own_path(snippet: Snippet, part: dict[str, Any]) -> None:
    names = ("livenessProbe", "readinessProbe", "startupProbe")
    assert [part[name]["httpGet"]["path"] for name in names] == ["/live", "/ready", "/ready"]


@found("targetPort")
def test_service_has_no_health_port(snippet: Snippet, part: dict[str, Any]) -> None:
    containers = [
        pod["containers"][0]
        for place, tree in documents()
        if place == snippet
        for pod in parts(tree, "containers")
    ]
    assert [ports(container)[part["targetPort"]] for container in containers] == [8080]


def pod_of_the_docs() -> dict[str, Any]:
    """Return the pod of the Deployment that the pages about health and metrics refer to."""
    (pod,) = [
        tree["spec"]["template"]
        for place, tree in documents()
        if place.page == "containers.rst" and tree.get("kind") == "Deployment"
    ]
    return cast("dict[str, Any]", pod)


@found("podSelector")
def test_fence_names_ports_of_the_pod_and_leaves_only_the_apps_open(
    snippet: Snippet, part: dict[str, Any]
) -> None:
    pod = pod_of_the_docs()
    assert part["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    named = ports(pod["spec"]["containers"][0])
    fenced = {
        named[port["port"]]: "from" in rule for rule in part["ingress"] for port in rule["ports"]
    }
    assert fenced == {8080: False, HEALTH_PORT: True}


@found("podMetricsEndpoints")
def test_pod_monitor_names_a_port_of_the_pod(snippet: Snippet, part: dict[str, Any]) -> None:
    """And the pod has the labels that it looks for; ``/metrics`` is where it asks."""
    pod = pod_of_the_docs()
    assert part["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (endpoint,) = part["podMetricsEndpoints"]
    (container,) = pod["spec"]["containers"]
    port = ports(container)[endpoint["port"]]
    check_port_and_path(port, endpoint.get("path", "/metrics"), load(environment(container)))


@found("scrape_configs")
def test_prometheus_asks_where_metrics_are(snippet: Snippet, part: dict[str, Any]) -> None:
    (job,) = part["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    port = int(target.rpartition(":")[2])
    path = job.get("metrics_path", "/metrics")
    check_port_and_path(port, path)
    assert path.endswith(METRICS_SUFFIX)
    assert ("authorization" in job) == (port != HEALTH_PORT)


def compose_services(holding: str = "") -> pytest.MarkDecorator:
    """Return a parametrization over every service that has a key."""
    services = [
        (snippet, service)
        for snippet, tree in documents()
        for part in parts(tree, "services")
        for service in part["services"].values()
        if holding in service or not holding
    ]
    assert services
    return pytest.mark.parametrize(
        ("snippet", "service"), services, ids=[str(snippet) for snippet, _ in services]
    )


@compose_services()
def test_compose_waits_for_the_stop_and_publishes_no_health_port(
    snippet: Snippet, service: dict[str, Any]
) -> None:
    settings = load(service.get("environment", {}))
    grace = seconds(service.get("stop_grace_period", f"{GRACE_OF_DOCKER}s"))
    assert grace > stop_seconds(settings)
    published = [int(port.rpartition(":")[2]) for port in service["ports"]]
    assert published == [settings.port]


@compose_services("healthcheck")
def test_compose_asks_inside_the_container(snippet: Snippet, service: dict[str, Any]) -> None:
    settings = load(service["environment"])
    check = service["healthcheck"]
    kind, program, option, code = check["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    ast.parse(code)
    url, timeout = re.findall(r'urlopen\("http://(.*?)", timeout=([0-9]+)\)', code)[0]
    address, _, path = url.partition("/")
    assert address == settings.health_address
    check_port_and_path(int(address.rpartition(":")[2]), f"/{path}", settings)
    assert float(timeout) < seconds(check["timeout"]) < seconds(check["interval"])


# systemd

Unit = dict[str, dict[str, list[str]]]
"""Section, key, and each of its values: a key may be repeated."""


def parse_unit(snippet: Snippet) -> Unit:
    """Parse a unit, which looks like a file of configparser and is none."""
    unit: Unit = {}
    section: dict[str, list[str]] | None = None
    for line in snippet.text.splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        if title := re.fullmatch(r"\[(\w+)\]", line):
            assert title[1] not in unit, "twice the same section"
            section = unit[title[1]] = defaultdict(list)
            continue
        key, equals, value = line.partition("=")
        assert section is not None, "a key before its section"
        assert equals, line
        assert re.fullmatch(r"[A-Z]\w*", key), line
        section[key].append(value)
    return unit


SECTIONS = {
    "service": {"Unit", "Service", "Install"},
    "socket": {"Unit", "Socket", "Install"},
}


def units(kind: str = "", holding: str = "") -> pytest.MarkDecorator:
    """Return a parametrization over every unit of the docs, and every part of one.

    :param kind: only units of this kind
    :param holding: only those with this text
    """
    cases = [
        (snippet, parse_unit(snippet))
        for snippet in snippets("ini")
        if kind in ("", kind_of(snippet)) and holding in snippet.text
    ]
    assert cases
    return pytest.mark.parametrize(
        ("snippet", "unit"), cases, ids=[str(snippet) for snippet, _ in cases]
    )


def kind_of(snippet: Snippet) -> str:
    """Return what kind of unit this is; a file in ``NAME.d`` is part of ``NAME``."""
    folders = [part for part in Path(snippet.caption).parts if part.endswith(".d")]
    name = folders[0].removesuffix(".d") if folders else snippet.caption
    return name.rpartition(".")[2] or "service"


@units()
def test_unit_has_the_sections_of_its_kind(snippet: Snippet, unit: Unit) -> None:
    assert unit
    assert set(unit) <= SECTIONS[kind_of(snippet)]
    lists = [
        key
        for section in unit.values()
        for key, values in section.items()
        # An empty value in a drop-in takes back those of the unit.
        if len(values) > 1 and values[0]
    ]
    assert set(lists) <= {"Environment"}


def environment_of(unit: Unit) -> dict[str, str]:
    return dict(value.split("=", 1) for value in unit["Service"].get("Environment", []))


@units("service")
def test_unit_waits_for_the_stop(snippet: Snippet, unit: Unit) -> None:
    """And with a drain, its SIGTERM does not go to the workers."""
    service = unit["Service"]
    settings = load(environment_of(unit))
    (limit,) = service.get("TimeoutStopSec", [str(GRACE_OF_SYSTEMD)])
    assert seconds(limit) > stop_seconds(settings)
    assert service.get("KillMode", []) == (["mixed"] if settings.drain_seconds else [])


@units("service", "serve-prod")
def test_unit_lets_the_server_say_that_it_is_ready(snippet: Snippet, unit: Unit) -> None:
    service = unit["Service"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert service["RestartPreventExitStatus"] == ["2"]


@units("service", "ExecStart")
def test_unit_asks_the_health_port_that_another_one_opens(snippet: Snippet, unit: Unit) -> None:
    commands = [
        value for key, values in unit["Service"].items() if key[:4] == "Exec" for value in values
    ]
    for command in commands:
        assert os.path.isabs(shlex.split(command)[0]), command
    asked = re.findall(r"http://([\w.:]+)(/[\w/]*)", " ".join(commands))
    opened = {
        load(environment_of(parse_unit(other))).health_address
        for other in snippets("ini")
        if other.page == snippet.page and kind_of(other) == "service"
    }
    for address, path in asked:
        assert address in opened
        assert path in HEALTH_PATHS


@units("service", "NOW_LMS_HEALTH_PORT")
def test_unit_keeps_the_health_port_on_its_machine(snippet: Snippet, unit: Unit) -> None:
    """Nobody else probes a service of systemd."""
    assert load(environment_of(unit)).health_address == f"127.0.0.1:{HEALTH_PORT}"


# Proxies


def proxy_snippets(holding: str) -> pytest.MarkDecorator:
    """Return a parametrization over every configuration of a proxy with this text."""
    cases = [snippet for snippet in snippets("text", "nginx") if holding in snippet.text]
    assert cases
    return pytest.mark.parametrize("snippet", cases, ids=str)


def check(command: list[str]) -> None:
    """See that a proxy finds nothing wrong with its configuration."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on this machine")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@proxy_snippets("defaults\n")
def test_haproxy_takes_the_whole_configuration(snippet: Snippet, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(snippet.text, encoding="utf-8")
    check(["haproxy", "-c", "-dW", "-f", str(path)])


@proxy_snippets("proxy_pass")
def test_nginx_takes_the_server(snippet: Snippet, tmp_path: Path) -> None:
    """On a unix socket: the test of a configuration opens the port, which needs root."""
    server = snippet.text.replace("listen 80;", f"listen unix:{tmp_path}/http.sock;")
    path = tmp_path / "nginx.conf"
    path.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {server} }}",
        encoding="utf-8",
    )
    check(["nginx", "-t", "-p", str(tmp_path), "-c", str(path)])


# What is typed and asked


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in REALLY_ASKED], ids=lambda page: page.name
)
def test_every_address_that_is_asked_answers(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for port, path in re.findall(r"(?:localhost|127\.0\.0\.1):(8080|8081)(/[\w/]*)", text):
        check_port_and_path(int(port), path)


@pytest.mark.parametrize("path", ["/live", "/ready", "/metrics", *sorted(APP_PATHS)])
def test_health_port_answers_what_the_docs_say(path: str) -> None:
    """What the snippets are held to above is what a server does."""
    assert path in HEALTH_PATHS
    assert Client(probe_app()[0]).get(path).status_code == 200


def test_reasons_of_the_docs_are_those_of_the_probes() -> None:
    text = (ROOT / "docs" / "health.rst").read_text(encoding="utf-8")
    table = text.partition("* - ``reason``")[2].partition("A *slot* is")[0]
    told = {
        (reason, int(live), int(ready))
        for reason, live, ready in re.findall(
            r"\* - ``([a-z ]+)``\n +- ([0-9]+)\n +- ([0-9]+)\n", table
        )
    }
    assert told == {*answers_in_every_state(), *answers_about_workers()}


def answers_in_every_state() -> Iterator[tuple[str, int, int]]:
    app, board = probe_app()
    for state in (State.STARTING, State.DRAINING, State.STOPPING):
        board.state = state
        yield answer(app)


def answers_about_workers() -> Iterator[tuple[str, int, int]]:
    board = Scoreboard(1, 1)
    board.state = State.SERVING
    endpoint = CapacityEndpoint(lambda **_: CapacityReport.of(PLAN, serving=True), lambda: None)

    def app(timeout: float = 120) -> ProbeApp:
        return ProbeApp(endpoint, board.read, ProbeRules(timeout))

    live, ready = (Client(app()).get(path) for path in ("/live", "/ready"))
    assert ready.get_json()["reason"] == "no worker is ready"
    yield (live.get_json()["reason"], live.status_code, ready.status_code)
    row = board.allocate(1)
    assert row is not None
    yield answer(app())
    row.set_ready()
    yield answer(app(timeout=1e-9))
    board.guard = GuardState.CRITICAL
    yield answer(app())


def answer(app: ProbeApp) -> tuple[str, int, int]:
    """Return why a server is not ready, and the status of ``/live`` and ``/ready``."""
    live, ready = (Client(app).get(path) for path in ("/live", "/ready"))
    return ready.get_json()["reason"], live.status_code, ready.status_code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_metric_that_is_mentioned_is_there(page: Path) -> None:
    totals = BOARD.queue_times.totals()
    now = replace(BOARD.read(), connections=0, queue_totals=totals)
    report = CapacityReport.of(PLAN, serving=True, now=now)
    known = {
        sample.name
        for family in text_string_to_metric_families(render(report, "")[0].decode())
        for sample in family.samples
    }
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"\bworkersize_[a-z_]+", text)) <= known


# gunicorn's hooks


def test_hooks_that_have_to_be_called_are_listed() -> None:
    """In ``gunicorn_conf``, which plans when it is imported, so it is only read."""
    path = ROOT / "flask_workersize" / "gunicorn_conf.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hooks = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    text = (ROOT / "docs" / "serve-prod.rst").read_text(encoding="utf-8")
    listed = text.partition("There is one exception. ")[2].partition(" of your own")[0]
    # It does nothing, for files that call it.
    assert set(re.findall(r"``(\w+)``", listed)) == hooks - {"on_reload"}
