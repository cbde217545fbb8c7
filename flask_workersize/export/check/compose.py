"""Files of Compose, and of stacks, read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import value
from .nodes import Node
from .value import Value, amount
from .workload import Facts, Keys, Probe, Workload, collect, port_of

_KEYS = Keys(
    "deploy.resources.limits.memory", 10, "Set stop_grace_period: {}s.", "a tmpfs volume at /tmp"
)
_STACK = {"endpoint_mode", "update_config", "rollback_config", "placement", "mode", "labels"}


def workloads(document: Node, facts: Facts) -> Iterator[Workload]:
    """Yield the services of a file."""
    services = list(document["services"].items())
    networks = [node["driver"].text for _, node in document["networks"].items()]
    is_stack = "overlay" in networks or any(
        _STACK & {name for name, _ in service["deploy"].items()} for _, service in services
    )
    for name, service in services:
        yield _service(name, service, is_stack, facts)


def _service(name: str, service: Node, is_stack: bool, facts: Facts) -> Workload:
    limits, files = service["deploy.resources.limits"], service["env_file"]
    grace = service["stop_grace_period"]
    tmpfs = service["tmpfs"].words
    mounted = [*tmpfs, *(_target(volume) for volume in service["volumes"])]
    return Workload(
        keys=_KEYS,
        name=name,
        place=service.place,
        facts=facts,
        image=service["image"].text,
        command=[*service["entrypoint"].words, *service["command"].words],
        variables=dict(_variables(service["environment"])),
        elsewhere=[Value(file, files.place) for file in files.words if file],
        amounts=collect(
            memory_limit=amount((limits["memory"] or service["mem_limit"]).value, value.docker),
            CPU_limit=amount((limits["cpus"] or service["cpus"]).value, value.number),
            grace=amount(grace.value, value.seconds),
        ),
        replicas=amount((service["deploy.replicas"] or service["scale"]).value, value.count),
        probes=list(_probes(service["healthcheck.test"])),
        published=list(_published(service["ports"])),
        read_only=service["read_only"].value,
        is_writable=any(re.match(r"/tmp(/?$|:)", path) for path in mounted),
        tmpfs=Value("tmpfs", service["tmpfs"].place) if is_stack and tmpfs else None,
    )


def _variables(node: Node) -> Iterator[tuple[str, Value]]:
    entries = [(name, item.text, item) for name, item in node.items()]
    for item in node:
        name, equals, text = item.text.partition("=")
        entries.append((name, text if equals else "$", item))
    for name, text, item in entries:
        # What is in braces, and what has no value, comes from the shell that starts it.
        is_known = bool(item) and "$" not in text.replace("$$", "")
        yield name, Value(text.replace("$$", "$"), item.place, is_known)


def _target(volume: Node) -> str:
    """Return the folder inside of a volume."""
    return volume["target"].text or volume.text.partition(":")[2]


def _probes(test: Node) -> Iterator[Probe]:
    match = re.search(
        r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\]):([0-9]{2,5})", " ".join(test.words)
    )
    if match:
        yield Probe("healthcheck", int(match[1]), test.place)


def _published(ports: Node) -> Iterator[Probe]:
    for port in ports:
        text, address = port.text.partition("/")[0], port["host_ip"].text
        *before, target = text.rsplit(":", 2) if text else ["", port["target"].text]
        address = before[0] if len(before) == 2 else address
        low, _, high = target.partition("-")
        first, last = port_of(low), port_of(high or low)
        if first is not None and last is not None and not address.startswith(("127.", "[::1]")):
            yield from (Probe("ports", number, port.place) for number in (first, last))
