"""The rules for what is around workloads: autoscalers, databases, budgets, balancers."""

from __future__ import annotations

from collections.abc import Iterator

from ...sizing.fleet import CPU_SHARE, cpu_at_saturation
from ...sizing.plan import counted
from .. import derive
from . import kubernetes
from .case import Case, Hit
from .value import whole

POOL = 15
"""Connections of a pool of SQLAlchemy by default: 5, and 10 of overflow."""


def repeated_key(case: Case) -> Iterator[Hit]:
    """Find keys that a mapping has twice."""
    for document in case.documents:
        for key in document.repeated_keys():
            yield Hit(key.place, f"The key {key.text[:40]} is there twice")


def cpu_target(case: Case) -> Iterator[Hit]:
    """Find CPU targets that the app never reaches."""
    profile = case.facts.settings.profile
    for item, scaler in case.scaled():
        for target in kubernetes.cpu_targets(scaler):
            asked, limit = item.size("CPU request"), item.size("CPU limit")
            request = asked or limit
            if not {"CPU request", "CPU limit"} & item.amounts.keys():
                what = f"{item.name} requests no CPU, of which its CPU target is a share"
                yield Hit(target.place, what, "Set resources.requests.cpu.")
            percent = whole(target.text)
            if profile and item.plan and limit and request and percent:
                slots = item.bounds.slots if item.bounds else item.plan.concurrency
                share = cpu_at_saturation(item.plan, profile.costs_for(item.plan.server), slots)
                reach = 100 * share * limit / request
                if percent > max(1, reach):
                    what = f"{item.name} has a CPU target of {percent} %, and uses {reach:.0f} % "
                    what += f"when all its {slots} slots are busy"
                    better = max(1, int(CPU_SHARE * reach))
                    yield Hit(target.place, what, f"Set it to {better}, or scale by busy slots.")


def not_measured(case: Case) -> Iterator[Hit]:
    """Find CPU targets of an app that was not measured."""
    if case.facts.settings.profile is None:
        for item, scaler in case.scaled():
            for target in kubernetes.cpu_targets(scaler):
                what = f"Whether {item.name} reaches a CPU target of {target.text} % is not known"
                yield Hit(target.place, what)


def db_connections(case: Case) -> Iterator[Hit]:
    """Find pools that can open more connections than there are."""
    allowed, pool = case.facts.db_connections, case.facts.pool
    each, assumed = (POOL, " (the default of SQLAlchemy)") if pool is None else (pool, "")
    for item in case.workloads if allowed is not None else ():
        replicas = case.replicas(item)
        if replicas and item.least_plan and allowed is not None:
            most = item.bounds.workers.most if item.bounds else item.least_plan.workers
            total, workers = replicas[1] * most * each, counted(most, "worker")
            what = f"{item.name} can open {replicas[1]} replicas × {workers} × {each:g}{assumed} = "
            if total > allowed:
                place = item.replicas.place if item.replicas else item.place
                yield Hit(place, f"{what}{total:g} connections, and there are {allowed}")


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


def replicas(case: Case) -> Iterator[Hit]:
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
            selector = spec["selector.matchLabels"]
            if not replicas or not kubernetes.selects(selector, workload.labels):
                continue
            away, there = (
                kubernetes.shared(spec[name].text, replicas[0])
                for name in ("maxUnavailable", "minAvailable")
            )
            if replicas[0] and derive.blocks_drains(replicas[0], away, there):
                key = "maxUnavailable" if away is not None else "minAvailable"
                what = f"{key}: {spec[key].text} with {counted(replicas[0], 'replica')} of "
                yield Hit(spec[key].place, what + f"{workload.name} blocks every drain of a node")


def maxconn(case: Case) -> Iterator[Hit]:
    """Find balancers that leave slots idle."""
    limits = [(case.behind(name), limit) for b in case.balancers for name, limit in b.limits]
    limits += [
        (item, item.concurrency)
        for item in case.workloads
        if item.concurrency and (whole(item.concurrency.text) or 0) < derive.MOST_CLOUD_RUN_REQUESTS
    ]
    for item, limit in limits:
        most = whole(limit.text)
        if item and item.slots and most and most < item.slots:
            slots = counted(item.slots, "slot")
            yield Hit(limit.place, f"{item.name} has {slots}, and gets {most} requests at once")


def unknown_slots(case: Case) -> Iterator[Hit]:
    """Find balancers whose slots are not known."""
    for balancer in case.balancers:
        for name, limit in balancer.limits[:1]:
            item = case.behind(name)
            if item is None or item.plan is None:
                yield Hit(limit.place, f"Whether there are {limit.text} slots is not known")


def repeated_503(case: Case) -> Iterator[Hit]:
    """Find balancers that multiply the load of a replica that sheds some."""
    for balancer in case.balancers:
        for place in balancer.repeats:
            yield Hit(place, "A response with status 503 is retried")
