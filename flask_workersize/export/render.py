"""What an export consists of: :func:`render`, and the templates that it fills in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import derive
from .intent import Intent

_FILES: Mapping[str, Mapping[str, str]] = {
    "compose": {"compose.yaml": "compose.yaml.j2", "haproxy.cfg": "haproxy.cfg.j2"},
    "kubernetes": {"kubernetes.yaml": "kubernetes.yaml.j2"},
    "cloudrun": {"cloudrun.yaml": "cloudrun.yaml.j2"},
    "systemd": {"{name}.service": "service.j2", "{name}.socket": "socket.j2"},
    "dockerfile": {"Dockerfile": "Dockerfile.j2", ".dockerignore": "dockerignore.j2"},
    "haproxy": {"haproxy.cfg": "haproxy.cfg.j2"},
    "nginx": {"nginx.conf": "nginx.conf.j2"},
    "prometheus": {
        "prometheus.yml": "prometheus.yml.j2",
        "workersize-rules.yml": "workersize-rules.yml.j2",
        "workersize-rules-test.yml": "workersize-rules-test.yml.j2",
    },
    "grafana": {"dashboard.json": "dashboard.json.j2"},
}

TARGETS = tuple(_FILES)
"""What can be exported."""


def render(target: str, intent: Intent) -> dict[str, str]:
    """Return the files of an export; nothing is read but the templates.

    :param target: one of :data:`TARGETS`
    :param intent: what is to run, and where
    :returns: text by the name of the file
    """
    if target == "cloudrun":
        intent = derive.on_cloud_run(intent)
    if target == "systemd":
        # Clients wait in the queue of its socket: there is nothing to drain.
        intent = derive.without_drain(intent)
    values = {**_values(intent), "by_dns": target == "compose"}
    return {
        name.format(name=intent.name): _environment().get_template(template).render(values)
        for name, template in _FILES[target].items()
    }


@cache
def _environment() -> Environment:
    # Nothing of it is HTML, and every text that comes from outside was checked when it was read.
    return Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _values(intent: Intent) -> dict[str, Any]:
    slots, target = derive.slots(intent), derive.cpu_target(intent)
    return {
        "title": f"{intent.name}, written by flask workersize export",
        "reasons": list(derive.reasons(intent)),
        "name": intent.name,
        "image": intent.image,
        "app": intent.app,
        "python": intent.python,
        "user": derive.USER,
        "port": derive.PORT,
        "health_port": derive.HEALTH_PORT,
        "plan": derive.plan_of(intent),
        "slots": slots,
        "memory": derive.memory(intent),
        "cpus": derive.cpus(intent),
        "cpu_percent": derive.cpu_percent(intent.cpus),
        "replicas": intent.replicas,
        "connections": derive.connections(int(slots.value), intent.replicas.high),
        "autoscale": intent.autoscale,
        "cpu_target": target,
        "cpu_target_why": derive.cpu_target_why(target),
        "keda_target": derive.keda_target(int(slots.value)),
        "grace": derive.grace(intent),
        "drain_seconds": intent.drain_seconds,
        "check_seconds": derive.check_seconds(intent.drain_seconds),
        "response_seconds": derive.response_seconds(intent.settings.timeout),
        "cloud_run_seconds": derive.CLOUD_RUN_SECONDS,
        "cloud_run_concurrency": derive.cloud_run_concurrency(int(slots.value)),
        "cloud_run_timeout": derive.cloud_run_timeout(intent),
        "network_policy": intent.network_policy,
        "addresses": derive.addresses(intent),
        "environment": list(derive.environment(intent)),
    }
