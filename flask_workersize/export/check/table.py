"""The table of the rules, and :func:`check`, which holds files against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ...errors import printable
from . import fleet_rules, workload_rules
from .case import Case, Hit, read
from .workload import Facts


class Rule(NamedTuple):
    """A rule.

    :param find: yields where it is broken; its name is that of the rule in JSON
    :param what: what it finds, in general
    :param why: why that is a fault
    :param remedy: what to do; a finding may have a more exact one
    :param is_note: whether it is only worth knowing
    """

    find: Callable[[Case], Iterator[Hit]]
    what: str
    why: str
    remedy: str
    is_note: bool = False

    @property
    def name(self) -> str:
        """What it is called in JSON."""
        return self.find.__name__.replace("_", "-")


class Finding(NamedTuple):
    """What a rule has found: one line for a person, an object in JSON."""

    rule: str
    file: str
    line: int
    what: str
    why: str
    remedy: str
    is_note: bool

    def __str__(self) -> str:
        label = "note: " if self.is_note else ""
        what = self.what if self.what.endswith("?") else f"{self.what}."
        return f"{self.file}:{self.line}: {label}{what} {self.why} {self.remedy}".strip()


RULES = (
    Rule(
        workload_rules.memory_limit,
        "A container without a memory limit",
        "The server then plans with all memory of the machine, like everything else on it.",
        "Set resources.limits.memory or deploy.resources.limits.memory.",
    ),
    Rule(
        workload_rules.memory_need,
        "A memory limit below what the plan, or the measured app, needs",
        "Workers are killed or recycled as soon as they fill up.",
        "Raise the limit: flask workersize export calculates one.",
    ),
    Rule(
        workload_rules.pinned_too_many,
        "More workers pinned than fit into the limit",
        "Workers are killed or recycled as soon as they fill up.",
        "Unset NOW_LMS_WORKERS, so that the number follows the limits, or raise the limit.",
    ),
    Rule(
        workload_rules.quantity,
        "A number that is not valid, such as cpu: 1 core, memory: 512m or replicas: -1",
        "The engine refuses it, or takes it for something else.",
        "Write 512Mi and 500m (m is a thousandth) for Kubernetes, 512M and 0.5 for Compose, 512M "
        "and 50% for systemd.",
    ),
    Rule(
        fleet_rules.repeated_key,
        "A key that is there twice",
        "Some engines refuse the file, and others take the last one.",
        "Remove one of them.",
    ),
    Rule(
        workload_rules.settings,
        "A setting that the server refuses",
        "It exits with status 2.",
        "Correct it; until then the rest of this workload is not checked.",
    ),
    Rule(
        workload_rules.grace,
        "A grace not above preStop + drain + graceful timeout",
        "Requests still running then are lost.",
        "Raise terminationGracePeriodSeconds, stop_grace_period or TimeoutStopSec=.",
    ),
    Rule(
        workload_rules.probe_port,
        "A probe, or a check of HAProxy, on the port of the app",
        "It queues behind requests, so a busy replica is restarted or taken out when it is needed.",
        "Set NOW_LMS_HEALTH_PORT=8081, and check /ready and /live on that port.",
    ),
    Rule(
        workload_rules.service_links,
        "Service links on, and a Service whose name makes a variable of a setting",
        "Its value is an address, so the server skips the variable and warns.",
        "Set enableServiceLinks: false in the spec of the pod.",
    ),
    Rule(
        workload_rules.health_published,
        "The health port published",
        "Anyone can then read the metrics and the plan.",
        "Publish the app's port only.",
    ),
    Rule(
        workload_rules.read_only,
        "A read-only root without a writable /tmp",
        "Large uploads and responses are buffered in files there, so such requests fail.",
        "Add an emptyDir, a tmpfs volume or PrivateTmp=yes.",
    ),
    Rule(
        workload_rules.stack_tmpfs,
        "tmpfs: in a stack",
        "docker stack deploy silently drops it.",
        "Write it as a volume: {type: tmpfs, target: /tmp}.",
    ),
    Rule(
        fleet_rules.cpu_target,
        "A CPU target that this app cannot reach, or without a CPU request",
        "The autoscaler never adds a replica, however many requests wait.",
        "Set it to 70 % of what the app reaches, or scale by busy slots with KEDA.",
    ),
    Rule(
        fleet_rules.db_connections,
        "Replicas × workers × pool above --db-connections",
        "At peak load the database refuses connections.",
        "Make the pool smaller, run fewer replicas, or put a pooler before the database.",
    ),
    Rule(
        fleet_rules.keda,
        "KEDA on utilization, or without aggregation",
        "The autoscaler divides by the number of pods again, so it adds too few.",
        "Use valueLocation: busy, aggregateFromKubeServiceEndpoints and aggregationType: sum.",
    ),
    Rule(
        fleet_rules.replicas,
        "replicas: beside an autoscaler",
        "Each apply resets the number.",
        "Remove replicas: there.",
    ),
    Rule(
        fleet_rules.budget,
        "A PodDisruptionBudget that blocks every drain, such as maxUnavailable: 0",
        "Nodes cannot be drained for an update until someone deletes pods.",
        "Set maxUnavailable: 1 instead.",
    ),
    Rule(
        workload_rules.netlink,
        "RestrictAddressFamilies= without AF_NETLINK",
        "The server reads the length of its queue over netlink, and does not see it then.",
        "Add AF_NETLINK.",
    ),
    Rule(
        workload_rules.memory_high,
        "A MemoryHigh= that binds",
        "Above it the kernel throttles every process, long before an OOM kill.",
        "Use MemoryMax= only, or set NOW_LMS_MEMORY_HEADROOM_PERCENT=50.",
    ),
    Rule(
        workload_rules.oom_policy,
        "A unit without OOMPolicy=continue",
        "By default systemd stops the whole unit when one worker is OOM-killed.",
        "Set OOMPolicy=continue.",
    ),
    Rule(
        workload_rules.proc_subset,
        "ProcSubset=pid",
        "It hides /proc/meminfo, so the server does not see how much memory is free.",
        "Remove it; ProtectProc=invisible is fine.",
    ),
    Rule(
        fleet_rules.maxconn,
        "maxconn, max_conns or containerConcurrency below the slots",
        "The slots above that are never used.",
        "Set it to the number of slots.",
    ),
    Rule(
        fleet_rules.repeated_503,
        "A balancer that retries a response with status 503",
        "When one replica sheds load, the others get more of it.",
        "Take 503 out of retry-on or proxy_next_upstream.",
    ),
    Rule(
        workload_rules.forwarded_allow_ips,
        "FORWARDED_ALLOW_IPS with waitress",
        "So every client has the proxy's address, and every URL is http.",
        "Set NOW_LMS_TRUSTED_PROXY to the address of the proxy.",
    ),
    Rule(
        workload_rules.pinned,
        "Workers pinned",
        "The number does not follow the limits when they change.",
        "That is fine if intended; otherwise unset NOW_LMS_WORKERS.",
        is_note=True,
    ),
    Rule(
        workload_rules.unit_memory_limit,
        "A unit without MemoryMax=",
        "The server plans with all memory of the machine, which is fine if it is alone there.",
        "Otherwise set MemoryMax=.",
        is_note=True,
    ),
    Rule(
        workload_rules.doubtful_settings,
        "A warning of the server itself, such as a misspelled variable",
        "",
        "",
        is_note=True,
    ),
    Rule(
        fleet_rules.not_measured,
        "A CPU target of an app that was not measured",
        "That depends on how much of a request is waiting.",
        "Run flask workersize measure, and check again.",
        is_note=True,
    ),
    Rule(
        fleet_rules.unknown_slots,
        "maxconn without the manifest of the app",
        "The slots follow from its limits.",
        "Check both files in one run.",
        is_note=True,
    ),
    Rule(
        workload_rules.elsewhere,
        "Variables from a ConfigMap or a file that is not checked",
        "The settings there are not known.",
        "",
        is_note=True,
    ),
    Rule(
        workload_rules.left_out,
        "A workload in which nothing names this app",
        "It has no NOW_LMS_ variable, and does not start flask, gunicorn or waitress.",
        "If it is the app, set NOW_LMS_WSGI_SERVER there.",
        is_note=True,
    ),
    Rule(
        workload_rules.nothing,
        "A file with nothing to check",
        "Name Deployments, StatefulSets, Knative Services, Compose files, units, HAProxy or nginx.",
        "",
        is_note=True,
    ),
)
"""Every rule, in the order of the docs."""


_MOST_CHARS = 400


def check(texts: Mapping[str, str], facts: Facts) -> list[Finding]:
    """Hold files against the rules; pure.

    :param texts: the text of each file, by its name
    :param facts: what is known of the app
    :returns: findings and notes, in the order of the files and their lines
    :raises WorkerSizeConfigError: if a file is broken
    """
    case = read(texts, facts)
    order = {file: number for number, file in enumerate(texts)}
    found = {
        Finding(
            rule.name,
            hit.place.file,
            hit.place.line,
            printable(hit.what[:_MOST_CHARS]),
            rule.why,
            hit.remedy or rule.remedy,
            rule.is_note,
        )
        for rule in RULES
        for hit in rule.find(case)
    }
    names = [rule.name for rule in RULES]
    return sorted(
        found, key=lambda item: (order[item.file], item.line, names.index(item.rule), item)
    )
