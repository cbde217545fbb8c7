"""The rules for each workload: limits, settings, stops, ports, files."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...sizing.plan import HIGH_SHARE, MB, counted
from ...sizing.settings import SizingSettings
from .. import derive
from .case import Case, Hit
from .value import Place, Value
from .workload import VARIABLES, Workload


def memory_limit(case: Case) -> Iterator[Hit]:
    """Find containers without a limit."""
    for item, place in _unlimited(case):
        if not item.lines:
            yield Hit(place, f"{item.name} has no memory limit", f"Set {item.keys.memory}.")


def unit_memory_limit(case: Case) -> Iterator[Hit]:
    """Find units without a limit, unless their slice may have one."""
    for item, place in _unlimited(case):
        if item.lines and not item.is_part and "Slice" not in item.lines:
            yield Hit(place, f"{item.name} has no memory limit")


def _unlimited(case: Case) -> Iterator[tuple[Workload, Place]]:
    for item in case.workloads:
        limit = item.amounts.get("memory limit")
        if limit is None or limit.value in (0, math.inf):
            yield item, limit.place if limit else item.place


def memory_need(case: Case) -> Iterator[Hit]:
    """Find limits that do not hold the plan."""
    for item in case.workloads:
        if item.shortage and not item.is_pinned:
            what = f"{item.name} has {item.memory_mb} MB for a plan that needs {item.shortage}"
            limit = item.amounts.get("memory limit") or item.amounts["MemoryHigh"]
            yield Hit(limit.place, what)


def pinned_too_many(case: Case) -> Iterator[Hit]:
    """Find limits that do not hold the workers that are pinned."""
    for item in case.workloads:
        if item.shortage and item.is_pinned:
            workers = counted(item.settings.workers or 0, "worker")
            what = f"{item.name} has {workers} pinned in {item.memory_mb} MB, but they need "
            yield Hit(item.place_of("workers"), what + item.shortage)


def pinned(case: Case) -> Iterator[Hit]:
    """Find workers that are pinned, and fit."""
    for item in case.workloads:
        source = item.settings.source_of("workers")
        is_many = (item.settings.workers or 0) > 1 and not source.startswith("app.config")
        if item.is_pinned and is_many and not item.shortage:
            yield Hit(item.place_of("workers"), f"{item.name} pins its workers ({source})")


_REMEDIES = {
    "grace": "Write a whole number of seconds; Compose and systemd also take 1m30s.",
    "replicas": "Write a whole number.",
}


def quantity(case: Case) -> Iterator[Hit]:
    """Find numbers with a unit that are none."""
    for item in case.all_workloads:
        counts = [("replicas", item.replicas), ("most replicas", item.most_replicas)]
        for name, amount in [*item.amounts.items(), *counts]:
            if amount and amount.is_wrong:
                what = f"The {name} of {item.name} is not valid: {amount.text[:40]!r}"
                yield Hit(amount.place, what, _REMEDIES.get(name.split()[-1], ""))


def settings(case: Case) -> Iterator[Hit]:
    """Find settings with which the server will not start."""
    for item in case.all_workloads:
        if not isinstance(item.loaded, SizingSettings):
            said = item.loaded.message
            yield Hit(_named(item, said), f"{item.name} will not start: {said.rstrip('.')}")


def doubtful_settings(case: Case) -> Iterator[Hit]:
    """Find what the server itself warns of."""
    for item in case.workloads:
        for said in item.settings.warnings:
            yield Hit(_named(item, said), f"{item.name}: {said.rstrip('.')}")


def _named(item: Workload, said: str) -> Place:
    """Return the line of a variable that a message names."""
    found = (value.place for name, value in item.variables.items() if name in said)
    return next(found, item.place)


def grace(case: Case) -> Iterator[Hit]:
    """Find stops that the kill cuts short."""
    for item in case.workloads:
        given = item.amounts.get("grace")
        if (item.is_part and not given) or not item.knows("drain_seconds", "graceful_timeout"):
            continue
        seconds = given.value if given else item.keys.grace_seconds
        drain, graceful = item.settings.drain_seconds, item.settings.graceful_timeout
        stop = item.pre_stop + drain + graceful
        if seconds is not None and seconds <= stop:
            before = f"preStop {item.pre_stop:g} + " if item.pre_stop else ""
            parts = f"{before}drain {drain} + graceful timeout {graceful}"
            default = "" if given else " (the default)"
            what = f"{item.name} is killed after {seconds:g} s{default}; a stop takes {stop:g} s"
            enough = derive.grace_seconds(math.ceil(item.pre_stop) + drain, graceful)
            place, remedy = given.place if given else item.place, item.keys.longer.format(enough)
            yield Hit(place, f"{what}: {parts}", remedy)


def probe_port(case: Case) -> Iterator[Hit]:
    """Find probes that wait while every slot is busy."""
    for item in case.workloads:
        health = item.settings.health_port
        for probe in item.probes if item.knows("health_port") else ():
            if probe.port != health:
                there = f"not the health port {health}" if health else "and there is no health port"
                what = f"The {probe.name} of {item.name} checks port {probe.port}, {there}"
                yield Hit(probe.place, what)
    for balancer in case.balancers:
        for place in balancer.checks:
            what = "The check uses the app's port"
            yield Hit(place, what, f"Add port {derive.HEALTH_PORT}, the health port.")


def service_links(case: Case) -> Iterator[Hit]:
    """Find Services that become a variable of ours."""
    services = {
        item["metadata.name"].text: item["spec.clusterIP"].text != "None"
        for item in case.of_kind("Service")
    }
    for item in case.workloads:
        # If no Service is among the files, there tends to be one of the same name.
        for name, has_address in (services or {item.name: True}).items():
            variable = f"{name.upper().replace('-', '_')}_PORT"
            is_ours = variable in VARIABLES and variable not in item.variables
            if item.links and has_address and is_ours:
                what = f"The Service {name} sets {variable} in {item.name}, to its address"
                yield Hit(item.place, what)


def health_published(case: Case) -> Iterator[Hit]:
    """Find health ports that are open to the outside."""
    for item in case.workloads:
        health = item.settings.health_port
        for port in item.published:
            if health and port.port == health:
                what = f"{item.name} publishes its health port {health} ({port.name})"
                yield Hit(port.place, what)
        host = (item.settings.health_address or "").rpartition(":")[0]
        is_open = item.lines and not item.is_part and "IPAddressDeny" not in item.lines
        if is_open and host in ("0.0.0.0", "[::]"):
            what = f"{item.name} has its health port on all addresses of the machine"
            yield Hit(item.place_of("health_port"), what, "Set NOW_LMS_HEALTH_HOST=127.0.0.1.")


def read_only(case: Case) -> Iterator[Hit]:
    """Find read-only files without a place for uploads."""
    for item in case.workloads:
        if item.read_only and item.read_only.is_on and not item.is_writable:
            what = f"{item.name} has read-only files, and no /tmp that it can write to"
            yield Hit(item.read_only.place, what, f"Add {item.keys.writable}.")


def stack_tmpfs(case: Case) -> Iterator[Hit]:
    """Find what a stack drops."""
    for item in case.workloads:
        if item.tmpfs:
            yield Hit(item.tmpfs.place, f"{item.name} has tmpfs: in a stack")


def netlink(case: Case) -> Iterator[Hit]:
    """Find units that may not ask the kernel for their queue."""
    for item, line in _lines(case, "RestrictAddressFamilies"):
        words = line.text.split()
        denies = words[:1] and words[0].startswith("~")
        has_it = "AF_NETLINK" in [word.lstrip("~") for word in words]
        if has_it if denies else not has_it:
            yield Hit(line.place, f"{item.name} has no AF_NETLINK in RestrictAddressFamilies=")


def memory_high(case: Case) -> Iterator[Hit]:
    """Find plans that reach the memory above which processes are put to sleep."""
    for item in case.workloads:
        high, plan = item.amounts.get("MemoryHigh"), item.plan
        limit = item.size("MemoryHigh", "memory limit")
        if not high or not plan or not limit or high.value != limit:
            continue
        if plan.estimated_memory_mb > HIGH_SHARE * limit / MB:
            what = f"MemoryHigh={high.text} for a plan of {plan.estimated_memory_mb} MB"
            yield Hit(high.place, f"{item.name} has {what}")


def oom_policy(case: Case) -> Iterator[Hit]:
    """Find units that end when one worker is killed."""
    for item in case.workloads:
        said = item.lines.get("OOMPolicy", ())
        if item.lines and not item.is_part and (not said or said[-1].text != "continue"):
            what = f"has OOMPolicy={said[-1].text}" if said else "has no OOMPolicy="
            yield Hit(said[-1].place if said else item.place, f"{item.name} {what}")


def proc_subset(case: Case) -> Iterator[Hit]:
    """Find units that do not see how much memory there is."""
    for item, line in _lines(case, "ProcSubset"):
        if line.text == "pid":
            yield Hit(line.place, f"{item.name} has ProcSubset=pid")


def _lines(case: Case, key: str) -> Iterator[tuple[Workload, Value]]:
    for item in case.all_workloads:
        yield from ((item, line) for line in item.lines.get(key, ())[-1:])


def forwarded_allow_ips(case: Case) -> Iterator[Hit]:
    """Find a variable that only gunicorn reads."""
    name = "FORWARDED_ALLOW_IPS"
    for item in case.workloads:
        is_waitress = item.settings.wsgi_server == "waitress" and item.knows("wsgi_server")
        if name in item.variables and is_waitress and not item.settings.trusted_proxy:
            what = f"{item.name} sets {name}, which waitress does not read"
            yield Hit(item.variables[name].place, what)


def elsewhere(case: Case) -> Iterator[Hit]:
    """Find variables that are not among the files."""
    for item in case.workloads:
        for value in item.elsewhere:
            what = f"{item.name} has variables from {value.text}, which is not checked"
            is_map = value.text.startswith("ConfigMap ")
            yield Hit(value.place, what, "Add it to this run." if is_map else "")


def left_out(case: Case) -> Iterator[Hit]:
    """Find what is left out."""
    apps = {(item.place.file, item.name) for item in case.all_workloads}
    for item in case.left_out:
        if (item.place.file, item.name) not in apps:
            yield Hit(item.place, f"{item.name} is skipped: nothing in it names this app")


def nothing(case: Case) -> Iterator[Hit]:
    """Find files in which nothing is judged."""
    kinds = ("HorizontalPodAutoscaler", "ScaledObject", "PodDisruptionBudget", "Service")
    places = [item.place for item in (*case.all_workloads, *case.left_out)]
    places += [item.place for item in case.balancers]
    places += [item.place for kind in kinds for item in case.of_kind(kind)]
    for place in case.files:
        if place.file not in {seen.file for seen in places}:
            yield Hit(place, "This file has nothing to check")
