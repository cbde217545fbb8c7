"""What is exported, read by the tools of its users; each has to refuse a mistake, too.

``pip install -e '.[fleet]'`` and ``apt-get install haproxy nginx-light prometheus`` bring them. A
tool that is not there skips its tests. Nothing here needs a network, a daemon or a cluster.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_workersize.export.intent import Intent
from flask_workersize.export.render import render
from tests.export.intents import FIXED, intent, profile

pytestmark = pytest.mark.fleet

SECONDS = 60
"""How long a tool may take."""

VARIANTS: Mapping[str, list[Intent]] = {
    "kubernetes": [
        FIXED["kubernetes"],
        intent(replicas="1", cpus="0.25", network_policy=True),
        intent(profile(), {"NOW_LMS_WSGI_SERVER": "waitress"}, replicas="2..9"),
    ],
    "compose": [FIXED["compose"], intent(cpus="0.5", replicas="1", name="a-b")],
    "cloudrun": [FIXED["cloudrun"], intent(profile())],
    "systemd": [FIXED["systemd"], intent(profile(), cpus="1.5", name="a-b")],
    "haproxy": [FIXED["haproxy"], intent(drain="0", replicas="300")],
    "nginx": [FIXED["nginx"], intent(replicas="300")],
    "prometheus": [FIXED["prometheus"], intent(memory="16G", cpus="8", name="a-b")],
}
"""What is tried for each target."""


def tool(name: str) -> str:
    """Return a tool beside this Python or on the path, or skip."""
    found = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def package(name: str) -> Any:
    """Return a package of the extra "fleet", or skip."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed: pip install -e '.[fleet]'")


def run(folder: Path, *command: str) -> tuple[int, str]:
    """Return the status of a command, and what it says."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    return done.returncode, done.stdout + done.stderr


Check = Callable[[Path], str]
"""Returns what a tool has against the files in a folder; empty for nothing."""


def kubernetes_validate(folder: Path) -> str:
    """Check fields and types by the schemas of Kubernetes, and the rest by those of KEDA."""
    command = [tool("kubernetes-validate"), "--strict", "--quiet"]
    status, said = run(folder, *command, "kubernetes.yaml")
    scaled = [item for item in documents(folder) if item["kind"] == "ScaledObject"]
    return (said or "refused") if status else said_of("keda.v1alpha1", "ScaledObject", scaled)


def knative_schema(folder: Path) -> str:
    return said_of("knative_serving.serving.v1", "Service", documents(folder, "cloudrun.yaml"))


def documents(folder: Path, name: str = "kubernetes.yaml") -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((folder / name).read_text()))


def said_of(module: str, kind: str, items: list[dict[str, Any]]) -> str:
    """Return what a schema that allows no unknown fields has against some documents."""
    jsonschema = package("jsonschema")
    validator = jsonschema.Draft202012Validator(strict_schema(module, kind))
    return "; ".join(error.message for item in items for error in validator.iter_errors(item))


@cache
def strict_schema(module: str, kind: str) -> Any:
    model = getattr(package(f"cloudcoil.models.{module}"), kind)
    return closed(model.model_json_schema(by_alias=True))


def closed(schema: Any) -> Any:
    """Return a schema that allows no fields but those that it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    extra = {"additionalProperties": False} if "properties" in schema else {}
    return {name: closed(item) for name, item in schema.items()} | extra


def compose_config(folder: Path) -> str:
    """Check by Compose itself; it warns of what is for a stack alone."""
    status, said = run(folder, tool("docker-compose"), "-f", "compose.yaml", "config", "-q")
    lines = [line for line in said.splitlines() if "Swarm" not in line]
    return "\n".join(lines) or ("refused" if status else "")


def stack_config(folder: Path) -> str:
    """Check by the client of Docker, which needs no daemon for that."""
    status, said = run(folder, tool("docker"), "stack", "config", "-c", "compose.yaml")
    return said if status else ""


def systemd_verify(folder: Path) -> str:
    """Check units; it has status 0 for keys that it does not know, so all it says is a finding."""
    for unit in folder.glob("*.service"):
        # It wants the program to be there.
        text = re.sub(
            r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.M
        )
        unit.write_text(text)
    units = sorted(path.name for path in folder.iterdir())
    status, said = run(folder, tool("systemd-analyze"), "verify", "--man=no", *units)
    return said or ("refused" if status else "")


def haproxy_check(folder: Path) -> str:
    # The name of the service is known in its network alone.
    path = folder / "haproxy.cfg"
    path.write_text(path.read_text().replace("init-addr libc,none", "init-addr none"))
    status, said = run(folder, tool("haproxy"), "-c", "-f", "haproxy.cfg")
    noise = r"haproxy version|path to executable|file is valid"
    lines = [line for line in said.splitlines() if line and not re.search(noise, line)]
    return "\n".join(lines) or ("refused" if status else "")


def nginx_test(folder: Path) -> str:
    around = "pid nginx.pid; error_log stderr; events {{}} http {{ access_log off; include {}; }}"
    (folder / "whole.conf").write_text(around.format(folder / "nginx.conf"))
    status, said = run(folder, tool("nginx"), "-t", "-p", ".", "-c", str(folder / "whole.conf"))
    return said if status else "".join(re.findall(r".*\[warn\].*", said))


def promtool(folder: Path) -> str:
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "workersize-rules.yml"],
        ["test", "rules", "workersize-rules-test.yml"],
    ):
        status, said = run(folder, tool("promtool"), *command)
        if status:
            return said
    return ""


def put(folder: Path, target: str, given: Intent, change: tuple[str, str] | None = None) -> None:
    """Write an export to a folder; ``change`` is what is replaced, and by what."""
    for name, text in render(target, given).items():
        (folder / name).write_text(text.replace(*change) if change else text)


CHECKS: list[tuple[str, Check, list[tuple[str, str]]]] = [
    (
        "kubernetes",
        kubernetes_validate,
        [
            ("terminationGracePeriodSeconds", "terminationGracePeriod"),
            ("periodSeconds: 10", 'periodSeconds: "10"'),
            ("maxReplicaCount", "maxReplicas"),
            ("policyTypes", "policyType"),
        ],
    ),
    (
        "cloudrun",
        knative_schema,
        [("containerConcurrency", "concurrency"), ("timeoutSeconds: 120", "timeoutSeconds: 2m")],
    ),
    (
        "compose",
        compose_config,
        [("stop_grace_period", "grace_period"), ("size: 67108864", "size: much")],
    ),
    (
        "compose",
        stack_config,
        [("endpoint_mode", "endpoint_mod"), ('cpus: "1"', "cpus: [1]")],
    ),
    (
        "systemd",
        systemd_verify,
        [("WatchdogSec", "WatchdogSeconds"), ("MemoryMax=712M", "MemoryMax=712 pages")],
    ),
    (
        "haproxy",
        haproxy_check,
        [
            ("option redispatch", "option redispatches"),
            ("timeout connect 3s", "timeout connect soon"),
        ],
    ),
    (
        "compose",
        haproxy_check,
        [("resolvers docker\n", "resolvers dockr\n"), ("inter 2s", "inter 2 s")],
    ),
    (
        "nginx",
        nginx_test,
        [
            ("least_conn", "least_connections"),
            ("proxy_read_timeout 65s", "proxy_read_timeout long"),
        ],
    ),
    (
        "prometheus",
        promtool,
        [
            ("static_configs", "static_config"),
            ("for: 10m", "for: ten"),
            ("increase(workersize_oom_kills_total", "increase(workersize_oom_kills"),
        ],
    ),
]
"""What checks a target, and mistakes in it that have to be found."""

IDS = [check.__name__ + "-" + target for target, check, _ in CHECKS]


@pytest.mark.parametrize(("target", "check", "_"), CHECKS, ids=IDS)
def test_its_tool_has_nothing_against_an_export(
    target: str, check: Check, _: object, tmp_path: Path
) -> None:
    for number, given in enumerate(VARIANTS[target]):
        folder = tmp_path / str(number)
        folder.mkdir()
        put(folder, target, given)
        assert check(folder) == ""


@pytest.mark.parametrize(
    ("target", "check", "change"),
    [(target, check, change) for target, check, changes in CHECKS for change in changes],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_its_tool_refuses_a_mistake(
    target: str, check: Check, change: tuple[str, str], tmp_path: Path
) -> None:
    put(tmp_path, target, FIXED[target], change)
    changed = "".join(path.read_text() for path in tmp_path.iterdir())
    assert change[1] in changed
    assert change[0] not in changed.replace(change[1], "")
    assert check(tmp_path) != ""


def test_hardening_leaves_little_open(tmp_path: Path) -> None:
    """By ``systemd-analyze security``, whose scale ends at 10; an open unit has 9.6."""
    put(tmp_path, "systemd", FIXED["systemd"])
    command = [tool("systemd-analyze"), "security", "--offline=true", "--threshold=30"]
    status, said = run(tmp_path, *command, "lms.service")
    assert status == 0, said
