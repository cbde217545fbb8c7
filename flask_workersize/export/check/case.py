"""All that is checked in one run: the files together, since one may tell what another one needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...sizing.settings import SizingSettings
from . import balancer, compose, kubernetes, unit
from .balancer import Balancer
from .nodes import Node, documents
from .value import Place
from .workload import Facts, Workload, chosen


class Hit(NamedTuple):
    """Where a rule is broken, what is there, and what to do where that is not always the same."""

    place: Place
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Case:
    """What was read.

    :param facts: what is known of the app
    :param all_workloads: those that run the app
    :param left_out: those that do not seem to
    :param documents: of all files that are YAML
    :param objects: of Kubernetes
    :param balancers: files of HAProxy and nginx
    :param files: the first line of each file
    """

    facts: Facts
    all_workloads: list[Workload] = field(default_factory=list)
    left_out: list[Workload] = field(default_factory=list)
    documents: list[Node] = field(default_factory=list)
    objects: list[Node] = field(default_factory=list)
    balancers: list[Balancer] = field(default_factory=list)
    files: list[Place] = field(default_factory=list)

    @property
    def workloads(self) -> list[Workload]:
        """Those whose settings are not refused: nothing follows from settings that are."""
        return [item for item in self.all_workloads if isinstance(item.loaded, SizingSettings)]

    def of_kind(self, kind: str) -> Iterator[Node]:
        """Yield the objects of a kind, but not those of Knative."""
        for item in self.objects:
            if kubernetes.kind(item) == kind and not kubernetes.is_knative(item):
                yield item

    def scaled(self) -> Iterator[tuple[Workload, Node]]:
        """Yield each workload that an autoscaler scales, and the autoscaler."""
        for name, scaler, _, _ in kubernetes.scalers(self.objects):
            yield from ((item, scaler) for item in self.workloads if item.name == name)

    def replicas(self, workload: Workload) -> tuple[int, int] | None:
        """Return the least and the most replicas; ``None`` if they are not known."""
        for name, _, low, high in kubernetes.scalers(self.objects):
            if name == workload.name:
                bounds = [kubernetes.shared(node.text, 0) for node in (low, high)]
                return (bounds[0] or 1, bounds[1] or 1)
        least, most = workload.replicas, workload.most_replicas or workload.replicas
        if any(item is not None and item.value is None for item in (least, most)):
            return None
        return int(least.value or 0) if least else 1, int(most.value or 0) if most else 1

    def behind(self, group: str) -> Workload | None:
        """Return the workload behind a balancer: the one of that name, or the only one."""
        named = [item for item in self.workloads if item.name == group] or self.workloads
        return named[0] if len(named) == 1 else None


def read(texts: Mapping[str, str], facts: Facts) -> Case:
    """Read files, by their names.

    :raises WorkerSizeConfigError: if one of them is broken
    """
    case = Case(facts)
    found: list[Workload] = []
    for file, text in texts.items():
        case.files.append(Place(file, 1))
        kind = _kind(file, text)
        if kind == "YAML":
            for document in documents(file, text):
                case.documents.append(document)
                case.objects.extend(kubernetes.objects(document))
                found.extend(compose.workloads(document, facts))
        elif kind == "unit":
            found.extend(unit.workloads(file, text, facts))
        elif kind is not None:
            case.balancers.append(getattr(balancer, kind)(file, text))
    found.extend(kubernetes.workloads(case.objects, facts))
    case.all_workloads[:], case.left_out[:] = chosen(found)
    return case


_KINDS = {
    "YAML": r"^(apiVersion|kind|services|items)\s*:|\A\s*[{]",
    "unit": r"^\[(Unit|Service|Install|Socket)\]\s*$",
    "haproxy": r"^(global|defaults|frontend|backend|listen)\b[^:={\n]*$",
    "nginx": r"^[ \t]*(upstream |server\b|http\b|location )[^{;\n]*\{",
}


def _kind(file: str, text: str) -> str | None:
    """Return what a file is, by its name or by what is in it; ``None`` for something else."""
    if re.search(r"\.(ya?ml|json)$", file):
        return "YAML"
    found = (kind for kind, pattern in _KINDS.items() if re.search(pattern, text, re.MULTILINE))
    return next(found, None)
