"""Manifests of Kubernetes and Knative, read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .. import derive
from . import value
from .nodes import Node
from .value import Value, amount
from .workload import Facts, Keys, Probe, Workload, collect, port_of

_PODS = ("Deployment", "StatefulSet", "DaemonSet", "Rollout")
_MEMORY = "resources.limits.memory"
_POD = Keys(_MEMORY, 30, "Set terminationGracePeriodSeconds: {}.", "an emptyDir at /tmp")
_KNATIVE = Keys(_MEMORY, math.inf, "")
_CLOUD_RUN = Keys(
    _MEMORY,
    derive.CLOUD_RUN_SECONDS,
    f"Set NOW_LMS_GRACEFUL_TIMEOUT below {derive.CLOUD_RUN_SECONDS}, without a drain: that time "
    "cannot be changed, and no request comes in it.",
)


def objects(document: Node) -> Iterator[Node]:
    """Yield the objects of a document, those in a List, too."""
    for item in document["items"] if document["kind"].text.endswith("List") else [document]:
        if item["apiVersion"] and item["kind"]:
            yield item


def is_knative(item: Node) -> bool:
    """Return whether an object is a Service of Knative, and none of Kubernetes."""
    group = item["apiVersion"].text.startswith("serving.knative.dev/")
    return group and item["kind"].text in ("Service", "Configuration")


def selects(selector: Node, labels: Mapping[str, str]) -> bool:
    """Return whether a selector, which is not empty, is met by the labels of a pod."""
    wanted = {name: node.text for name, node in selector.items()}
    return bool(wanted) and wanted.items() <= labels.items()


def workloads(items: Sequence[Node], facts: Facts) -> Iterator[Workload]:
    """Yield the containers of everything that makes pods."""
    maps = {item["metadata.name"].text: item["data"] for item in items if kind(item) == "ConfigMap"}
    services = [item for item in items if kind(item) == "Service" and not is_knative(item)]
    for item in items:
        if is_knative(item) or kind(item) in _PODS:
            for container in item["spec.template.spec.containers"]:
                yield _container(item, container, maps, services, facts)


def kind(item: Node) -> str:
    """Return the kind of an object."""
    return item["kind"].text


def _container(
    item: Node, box: Node, maps: Mapping[str, Node], services: Sequence[Node], facts: Facts
) -> Workload:
    pod, knative = item["spec.template"], is_knative(item)
    spec = pod["spec"]
    labels = {name: node.text for name, node in pod["metadata.labels"].items()}
    named = {port["name"].text: port["containerPort"].text for port in box["ports"]}
    first = next((port["containerPort"].text for port in box["ports"]), "8080")
    find = partial(
        port_of, named=lambda text: named.get(text) or (text or first if knative else None)
    )
    variables, elsewhere = _variables(box, maps)
    limits, requests = (box[f"resources.{name}"] for name in ("limits", "requests"))
    pod_limits = spec["resources.limits"]
    keys = _POD if not knative else _CLOUD_RUN if _is_cloud_run(item) else _KNATIVE
    scale = [pod["metadata.annotations"], item["metadata.annotations"]]
    return Workload(
        keys=keys,
        name=item["metadata.name"].text or "a workload without a name",
        place=box.place,
        facts=facts,
        image=box["image"].text,
        command=[*box["command"].words, *box["args"].words],
        variables=variables,
        elsewhere=elsewhere,
        amounts=collect(
            memory_limit=amount((limits["memory"] or pod_limits["memory"]).value, _memory),
            memory_request=amount(requests["memory"].value, _memory),
            CPU_limit=amount((limits["cpu"] or pod_limits["cpu"]).value, value.kubernetes),
            CPU_request=amount(requests["cpu"].value, value.kubernetes),
            grace=amount(spec["terminationGracePeriodSeconds"].value, value.count),
        ),
        replicas=amount(
            _annotated(scale, "min") if knative else item["spec.replicas"].value, _count
        ),
        most_replicas=amount(_annotated(scale, "max"), _count) if knative else None,
        pre_stop=_pre_stop(box["lifecycle.preStop"]),
        probes=list(_probes(box, find)),
        published=[*_host_ports(box), *_published(services, labels, find)],
        read_only=box["securityContext.readOnlyRootFilesystem"].value,
        is_writable=_is_writable(box, variables),
        links=not knative and spec["enableServiceLinks"].text != "false",
        labels=labels,
        concurrency=spec["containerConcurrency"].value if knative else None,
    )


_memory = value.kubernetes_memory
_count = value.count


def _is_cloud_run(item: Node) -> bool:
    """Return whether it is for Cloud Run: Knative itself knows none of its keys."""
    places = [item["metadata"], item["spec.template.metadata"]]
    return any(
        key.startswith("run.googleapis.com/") or node.text.endswith(".googleapis.com")
        for place in places
        for name in ("annotations", "labels")
        for key, node in place[name].items()
    )


def _annotated(places: Sequence[Node], which: str) -> Value | None:
    for place in places:
        for key, node in place.items():
            if re.fullmatch(rf"autoscaling\.knative\.dev/{which}-?scale", key.lower()):
                return node.value
    return None


def _variables(box: Node, maps: Mapping[str, Node]) -> tuple[dict[str, Value], list[Value]]:
    """Return the variables of a container, and the ConfigMaps and Secrets that are not here."""
    found: dict[str, Value] = {}
    elsewhere = []
    for source in box["envFrom"]:
        name = source["configMapRef.name"]
        for key, node in maps[name.text].items() if name.text in maps else ():
            found[source["prefix"].text + key] = Value(node.text, node.place)
        if name and name.text not in maps:
            elsewhere.append(Value(f"ConfigMap {name.text}", name.place))
    for entry in box["env"]:
        reference = entry["valueFrom.configMapKeyRef"]
        node = entry["value"]
        if reference["name"].text in maps:
            node = maps[reference["name"].text][reference["key"].text]
        is_known = "$(" not in node.text and bool(node or not entry["valueFrom"])
        found[entry["name"].text] = Value(node.text, entry.place, is_known)
    return found, elsewhere


def _probes(box: Node, find: Callable[[str], int | None]) -> Iterator[Probe]:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        for way in ("httpGet", "tcpSocket"):
            port = find(box[f"{name}.{way}.port"].text) if box[f"{name}.{way}"] else None
            if port is not None:
                yield Probe(name, port, box[f"{name}.{way}.port"].place)


def _pre_stop(hook: Node) -> float:
    """Return how long a pod sleeps before it gets SIGTERM, in seconds."""
    asleep = re.search(r"\bsleep\s+([0-9]{1,6})", " ".join(hook["exec.command"].words))
    text = asleep[1] if asleep else hook["sleep.seconds"].text
    return value.number(text) or 0


def _host_ports(box: Node) -> Iterator[Probe]:
    for port in box["ports"]:
        number = port_of(port["containerPort"].text)
        if port["hostPort"] and number is not None:
            yield Probe("hostPort", number, port["hostPort"].place)


def _published(
    services: Sequence[Node], labels: Mapping[str, str], find: Callable[[str], int | None]
) -> Iterator[Probe]:
    """Yield the ports that Services open to the outside."""
    for service in services:
        kind = service["spec.type"].text
        if kind in ("NodePort", "LoadBalancer") and selects(service["spec.selector"], labels):
            for port in service["spec.ports"]:
                number = find((port["targetPort"] or port["port"]).text)
                if number is not None:
                    yield Probe(f"{kind} {service['metadata.name'].text}", number, port.place)


def _is_writable(box: Node, variables: Mapping[str, Value]) -> bool:
    folders = ["/tmp", *(value.text for name, value in variables.items() if name == "TMPDIR")]
    mounts = [node["mountPath"].text.rstrip("/") for node in box["volumeMounts"]]
    return any(
        mount and folder and (folder == mount or folder.startswith(f"{mount}/"))
        for mount in mounts
        for folder in folders
    )


def scalers(items: Sequence[Node]) -> Iterator[tuple[str, Node, Node, Node]]:
    """Yield the name of what is scaled, the scaler, and its least and most replicas."""
    for item in items:
        if kind(item) == "HorizontalPodAutoscaler":
            low, high = "minReplicas", "maxReplicas"
        elif kind(item) == "ScaledObject":
            low, high = "minReplicaCount", "maxReplicaCount"
        else:
            continue
        spec = item["spec"]
        yield spec["scaleTargetRef.name"].text, item, spec[low], spec[high]


def cpu_targets(item: Node) -> Iterator[Value]:
    """Yield the CPU targets of an autoscaler, in % of what a pod requests."""
    spec = item["spec"]
    targets: list[Any] = [spec["targetCPUUtilizationPercentage"]]
    for metric in spec["metrics"]:
        for name in ("resource", "containerResource"):
            if metric[name]["name"].text == "cpu":
                targets.append(metric[name]["target.averageUtilization"])
    for trigger in spec["triggers"]:
        way = trigger["metricType"] or trigger["metadata.type"]
        if trigger["type"].text == "cpu" and way.text in ("", "Utilization"):
            targets.append(trigger["metadata.value"])
    yield from (target.value for target in targets if target.value)


def shared(count: str, replicas: int) -> int | None:
    """Return a number of pods of a budget, which may be a share; rounded up as Kubernetes does."""
    if (share := value.percent(count)) is not None:
        return math.ceil(round(share * replicas, 6))
    return value.whole(count)
