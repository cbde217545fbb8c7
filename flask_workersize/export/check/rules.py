"""The rules: each looks at the whole case, and yields where it is broken, and what is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from ...sizing.fleet import CPU_SHARE, cpu_at_saturation
from ...sizing.plan import HIGH_SHARE, MB, counted
from ...sizing.settings import SizingSettings
from .. import derive
from . import kubernetes
from .case import Case
from .value import Place, Value, whole
from .workload import VARIABLES, Workload

POOL = 15
"""Connections of a pool of SQLAlchemy by default: 5, and 10 of overflow."""


class Hit(NamedTuple):
    """Where a rule is broken, what is there, and what to do where that is not always the same."""

    place: Place
    what: str
    remedy: str = ""


def memory_limit(case: Case) -> Iterator[Hit]:
    """Find what has no limit, unless its slice may have one."""
    for item in case.workloads:
        limit = item.amounts.get("memory limit")
        is_none = limit is None or limit.value in (0, math.inf)
        if is_none and not item.is_part and "Slice" not in item.lines:
            place = limit.place if limit else item.place
            yield Hit(place, f"{item.name} has no memory limit", f"Set {item.keys.memory}.")


def memory_need(case: Case) -> Iterator[Hit]:
    """Find limits that do not hold the plan."""
    for item in case.workloads:
        if item.shortage and not _is_pinned(item):
            place = (
                item.amounts["memory limit"].place if "memory limit" in item.amounts else item.place
            )
            yield Hit(
                place, f"{item.name} has {item.memory_mb} MB for a plan that needs {item.shortage}"
            )


def pinned_too_many(case: Case) -> Iterator[Hit]:
    """Find limits that do not hold the workers that are pinned."""
    for item in case.workloads:
        if item.shortage and _is_pinned(item):
            workers = counted(item.settings.workers or 0, "worker")
            what = f"{workers} pinned in {item.memory_mb} MB, but they need {item.shortage}"
            yield Hit(item.place_of("workers"), f"{item.name} has {what}")


def pinned(case: Case) -> Iterator[Hit]:
    """Find workers that are pinned, and fit."""
    for item in case.workloads:
        source = item.settings.source_of("workers")
        if _is_pinned(item) and source in VARIABLES and not item.shortage:
            yield Hit(item.place_of("workers"), f"{item.name} pins its workers ({source})")


def _is_pinned(item: Workload) -> bool:
    return item.settings.workers is not None and item.settings.wsgi_server == "gunicorn"


def quantities(case: Case) -> Iterator[Hit]:
    """Find numbers with a unit that are none."""
    for item in case.all_workloads:
        for name, amount in item.amounts.items():
            if amount.is_wrong:
                yield Hit(
                    amount.place, f"The {name} of {item.name} is not valid: {amount.text[:40]!r}"
                )


def refused_settings(case: Case) -> Iterator[Hit]:
    """Find settings with which the server will not start."""
    for item in case.all_workloads:
        if not isinstance(item.loaded, SizingSettings):
            said = item.loaded.message
            named = (value.place for name, value in item.variables.items() if name in said)
            yield Hit(next(named, item.place), f"{item.name} will not start: {said.rstrip('.')}")


def doubtful_settings(case: Case) -> Iterator[Hit]:
    """Find what the server itself warns of."""
    for item in case.workloads:
        for said in item.settings.warnings:
            named = (value.place for name, value in item.variables.items() if name in said)
            yield Hit(next(named, item.place), f"{item.name}: {said.rstrip('.')}")


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
            what = (
                f"{item.name} is killed after {seconds:g} s{default}, and a stop takes {stop:g} s"
            )
            enough = derive.grace_seconds(math.ceil(item.pre_stop) + drain, graceful)
            remedy = item.keys.longer.format(enough)
            yield Hit(given.place if given else item.place, f"{what}: {parts}", remedy)


def probe_port(case: Case) -> Iterator[Hit]:
    """Find probes that wait while every slot is busy."""
    for item in case.workloads:
        health = item.settings.health_port
        for probe in item.probes if item.knows("health_port") else ():
            if probe.port != health:
                there = f"not the health port {health}" if health else "and there is no health port"
                what = f"The {probe.name} of {item.name} asks port {probe.port}, {there}"
                yield Hit(probe.place, what)
    for balancer in case.balancers:
        for place in balancer.checks:
            yield Hit(
                place, "The check asks the port of the app", "Add port 8081, the health port."
            )


def service_links(case: Case) -> Iterator[Hit]:
    """Find Services that become a variable of ours."""
    services = [
        item["metadata.name"].text
        for item in case.of_kind("Service")
        if item["spec.clusterIP"].text != "None"
    ]
    for item in case.workloads:
        for name in services or [item.name] if item.links else ():
            variable = f"{name.upper().replace('-', '_')}_PORT"
            if variable in VARIABLES and not item.text_of(variable):
                what = f"The Service {name} sets {variable} in {item.name}, to its address"
                yield Hit(item.place, what)


def health_published(case: Case) -> Iterator[Hit]:
    """Find health ports that are open to the outside."""
    for item in case.workloads:
        health = item.settings.health_port
        for port in item.published:
            if health and port.port == health:
                yield Hit(
                    port.place, f"{item.name} publishes its health port {health} ({port.name})"
                )
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
            yield Hit(item.tmpfs.place, f"{item.name} has tmpfs: in a stack, which drops it")


def cpu_target(case: Case) -> Iterator[Hit]:
    """Find CPU targets that the app never reaches."""
    profile = case.facts.settings.profile
    for item, scaler in case.scaled():
        for target in kubernetes.cpu_targets(scaler):
            asked, limit = item.size("CPU request"), item.size("CPU limit")
            request = asked or limit
            if not {"CPU request", "CPU limit"} & item.amounts.keys():
                what = (
                    f"{item.name} requests no CPU, so its CPU target has nothing to be a share of"
                )
                yield Hit(target.place, what, "Set resources.requests.cpu.")
            percent = whole(target.text)
            if profile and item.plan and limit and request and percent:
                share = cpu_at_saturation(item.plan, profile.costs_for(item.plan.server))
                reach = 100 * share * limit / request
                if percent > max(1, reach):
                    what = (
                        f"{item.name} has a CPU target of {percent} %, and uses {reach:.0f} % when "
                    )
                    what += f"all its {item.plan.concurrency} slots are busy"
                    better = max(1, int(CPU_SHARE * reach))
                    yield Hit(target.place, what, f"Set it to {better}, or scale by busy slots.")


def unmeasured_target(case: Case) -> Iterator[Hit]:
    """Find CPU targets of an app that was not measured."""
    if case.facts.settings.profile is None:
        for item, scaler in case.scaled():
            for target in kubernetes.cpu_targets(scaler):
                what = f"Whether {item.name} reaches a CPU target of {target.text} % is not known"
                yield Hit(target.place, what)


def db_connections(case: Case) -> Iterator[Hit]:
    """Find pools that can open more connections than there are."""
    allowed, pool = case.facts.db_connections, case.facts.pool
    for item in case.workloads if allowed is not None else ():
        replicas = case.replicas(item)
        if replicas and item.plan and allowed is not None:
            each = POOL if pool is None else pool
            total = replicas[1] * item.plan.workers * each
            if total > allowed:
                assumed = " (the default of SQLAlchemy)" if pool is None else ""
                what = f"{replicas[1]} replicas × {counted(item.plan.workers, 'worker')} × "
                what += f"{each:g} connections{assumed} = {total:g}"
                place = item.replicas.place if item.replicas else item.place
                yield Hit(place, f"{item.name}: {what}, above {allowed}")


def keda(case: Case) -> Iterator[Hit]:
    """Find triggers that do not sum what is busy, over all pods."""
    for item in case.of_kind("ScaledObject"):
        for trigger in item["spec.triggers"]:
            data, kind = trigger["metadata"], trigger["type"].text
            name = f"The trigger of {item['metadata.name'].text}"
            is_ours = "/_health/" in data["url"].text or data["valueLocation"].text == "busy"
            averages = (data["valueLocation"] if kind == "metrics-api" else data["query"]).text
            is_average = kind == "metrics-api" or trigger["metricType"].text != "Value"
            sums = data["aggregationType"].text == "sum"
            everywhere = data["aggregateFromKubeServiceEndpoints"].text == "true"
            if "utilization" in averages and is_average:
                yield Hit(trigger.place, f"{name} takes utilization, which is an average already")
            elif kind == "metrics-api" and is_ours and not (sums and everywhere):
                yield Hit(trigger.place, f"{name} reads one pod, and not the sum over all")


def fought_over(case: Case) -> Iterator[Hit]:
    """Find numbers of replicas that an autoscaler sets, too."""
    for item, scaler in case.scaled():
        if item.replicas:
            kind = kubernetes.kind(scaler)
            yield Hit(item.replicas.place, f"{item.name} has replicas: beside a {kind}")


def budget(case: Case) -> Iterator[Hit]:
    """Find budgets that keep nodes from being drained."""
    for item in case.of_kind("PodDisruptionBudget"):
        spec = item["spec"]
        for workload in case.workloads:
            replicas = case.replicas(workload)
            if not replicas or not kubernetes.selects(
                spec["selector.matchLabels"], workload.labels
            ):
                continue
            away, there = (
                kubernetes.shared(spec[name].text, replicas[0])
                for name in ("maxUnavailable", "minAvailable")
            )
            if replicas[0] and derive.blocks_drains(replicas[0], away, there):
                key = "maxUnavailable" if away is not None else "minAvailable"
                what = f"{key}: {spec[key].text} with {counted(replicas[0], 'replica')} of "
                yield Hit(spec[key].place, what + f"{workload.name} blocks every drain of a node")


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


def maxconn(case: Case) -> Iterator[Hit]:
    """Find balancers that leave slots idle."""
    limits = [(case.behind(name), limit) for b in case.balancers for name, limit in b.limits]
    limits += [(item, item.concurrency) for item in case.workloads if item.concurrency]
    for item, limit in limits:
        most = whole(limit.text)
        if item and item.plan and most and most < item.plan.concurrency:
            slots = counted(item.plan.concurrency, "slot")
            yield Hit(limit.place, f"{item.name} has {slots}, and gets {most} requests at once")


def unknown_slots(case: Case) -> Iterator[Hit]:
    """Find balancers whose slots are not known."""
    for balancer in case.balancers:
        for name, limit in balancer.limits[:1]:
            item = case.behind(name)
            if item is None or item.plan is None:
                what = f"Whether {limit.text} is the number of slots is not known"
                yield Hit(limit.place, what)


def repeats(case: Case) -> Iterator[Hit]:
    """Find balancers that multiply the load of a replica that sheds some."""
    for balancer in case.balancers:
        yield from (
            Hit(place, "An answer with status 503 is repeated") for place in balancer.repeats
        )


def forwarded(case: Case) -> Iterator[Hit]:
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
            yield Hit(
                value.place, f"{item.name} has variables from {value.text}, which is not here"
            )


def left_out(case: Case) -> Iterator[Hit]:
    """Find what is left out."""
    apps = {(item.place.file, item.name) for item in case.all_workloads}
    for item in case.left_out:
        if (item.place.file, item.name) not in apps:
            yield Hit(item.place, f"{item.name} is left out: nothing in it names this app")


def nothing(case: Case) -> Iterator[Hit]:
    """Find files in which nothing is judged."""
    seen = {item.place.file for item in [*case.all_workloads, *case.left_out]}
    seen |= {item.place.file for item in case.balancers}
    kinds = ("HorizontalPodAutoscaler", "ScaledObject", "PodDisruptionBudget", "Service")
    seen |= {item.place.file for kind in kinds for item in case.of_kind(kind)}
    for place in case.files:
        if place.file not in seen:
            yield Hit(place, "This file has nothing that can be judged")
