"""What is exported: the text, the numbers in it, and the rules between them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from flask_workersize import SizingSettings, WorkerSizeConfigError, compute_plan
from flask_workersize.export import derive
from flask_workersize.export.intent import Intent
from flask_workersize.export.render import TARGETS, render
from flask_workersize.export.write import shown
from flask_workersize.health.metrics import _PLANNED
from flask_workersize.runtime.figures import FIGURES
from flask_workersize.sizing.adaptive import adaptive_bounds
from flask_workersize.sizing.container import memory_for
from tests.export.intents import FIXED, intent, intents, profile
from tests.plain import MB, SECRET, resources, untimed

GOLDEN = Path(__file__).parents[1] / "data" / "export"
YAML = (".yaml", ".yml")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C, where it is there: the other takes ten times as long."""


def golden(target: str) -> str:
    """Return what an export printed when it was looked at last."""
    return shown(render(target, replace(FIXED[target], python="3.13")))


def documents(files: dict[str, str]) -> Iterator[dict[str, Any]]:
    for name, text in files.items():
        if name.endswith(YAML):
            yield from yaml.load_all(text, LOADER)


def of_kind(kind: str, files: dict[str, str]) -> list[dict[str, Any]]:
    return [item for item in documents(files) if item.get("kind") == kind]


def kubernetes(given: Intent) -> dict[str, str]:
    return render("kubernetes", given)


def pod(given: Intent) -> dict[str, Any]:
    (deployment,) = of_kind("Deployment", kubernetes(given))
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def variables(given: Intent) -> dict[str, str]:
    return {item.name: item.value for item in derive.environment(given)}


_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]{1,3})?)(|m|Ki|Mi)")
_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), "Ki": Decimal(1024), "Mi": Decimal(MB)}


def quantity(text: object) -> Decimal:
    """Return a quantity of Kubernetes, as strict as its parser; of the suffixes a few."""
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    assert match, text
    return Decimal(match[1]) * _FACTORS[match[2]]


@pytest.mark.parametrize("target", TARGETS)
def test_export_is_the_one_that_was_looked_at(target: str) -> None:
    """After a change that is meant: ``python -m tests.export.golden``."""
    assert golden(target) == (GOLDEN / f"{target}.txt").read_text()


@pytest.mark.parametrize("text", ["1 core", "512 Mi", "0.5.1", 1, "", "1e", "0.0001"])
def test_quantities_are_parsed_strictly(text: object) -> None:
    with pytest.raises(AssertionError):
        quantity(text)


@settings(untimed, max_examples=30)
@given(given=intents())
def test_every_export_of_any_intent_holds_the_rules(given: Intent) -> None:
    plan = derive.plan_of(given)
    for target in TARGETS:
        files = render(target, given)
        assert all(text.endswith("\n") and "{%" not in text for text in files.values())
        assert list(documents(files)) or target not in ("kubernetes", "compose", "cloudrun")
    json.loads(render("grafana", given)["dashboard.json"])
    spec = pod(given)
    environment = {item["name"]: item["value"] for item in spec["containers"][0]["env"]}
    assert environment == variables(given)
    drain, graceful = (
        int(environment.get(f"NOW_LMS_{name}", "0"))
        for name in ("DRAIN_SECONDS", "GRACEFUL_TIMEOUT")
    )
    assert (drain, graceful) == (given.drain_seconds, given.settings.graceful_timeout)
    assert spec["terminationGracePeriodSeconds"] > drain + graceful
    (container,) = spec["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert quantity(limits["memory"]) == given.memory_mb * MB
    assert quantity(limits["cpu"]) == Decimal(f"{given.cpus:g}")
    usable = given.memory_mb - given.loaded_mb
    assert usable * (100 - plan.memory_headroom_percent) >= 100 * plan.estimated_memory_mb
    assert "NOW_LMS_WORKERS" not in environment
    assert spec["enableServiceLinks"] is False


@settings(untimed, max_examples=30)
@given(given=intents())
def test_what_is_exported_makes_the_plan_that_the_export_counts_with(given: Intent) -> None:
    """In the container: its limits, less what the loaded app holds, and its variables alone."""
    there = SizingSettings.load(environ=variables(given))
    assert there.warnings == ()
    machine = resources(given.cpus, max(given.memory_mb - given.loaded_mb, 0))
    plan, expected = compute_plan(there, machine), derive.plan_of(given)
    assert (plan.workers, plan.threads) == (expected.workers, expected.threads)
    most = adaptive_bounds(there, plan, given.pool)
    assert derive.slots(given).value == str(most.slots if most else plan.concurrency)


@settings(untimed, max_examples=30)
@given(given=intents())
def test_memory_that_is_calculated_lets_the_cpus_bind(given: Intent) -> None:
    if given.settings.profile is None:
        return
    memory_mb = memory_for(given.settings, given.cpus, given.loaded_mb)
    assert memory_mb % 16 == 0
    endless = derive.plan_of(replace(given, memory_mb=1 << 40)).concurrency
    assert derive.plan_of(replace(given, memory_mb=memory_mb)).concurrency == endless


def test_memory_follows_from_the_profile() -> None:
    """(80 shared + 3 × 17) / 70 %, rounded up to 16 MB."""
    given = intent(profile())
    assert given.memory_mb == 192
    text = shown(kubernetes(given))
    assert "calculated from the sizing profile; the plan needs 80 MB shared + 3 × 17 MB" in text


def test_a_worker_with_all_its_threads_has_to_fit_as_it_was_measured() -> None:
    """80 MB shared, and 17 + 15 × 30 MB for a worker with 16 threads."""
    measured = profile(thread_mb=30)
    environ = {"NOW_LMS_THREADS": "16"}
    with pytest.raises(WorkerSizeConfigError, match="plus 1 × 467 MB for workers") as caught:
        intent(measured, environ, memory="240M")
    least = caught.value.message.rpartition("--memory ")[2].split()[0]
    assert intent(measured, environ, memory=least).memory_mb == int(least[:-1])
    assert intent(measured, environ).memory_mb >= 80 + 467


def test_threads_of_waitress_may_need_more_than_its_first_one() -> None:
    """70 MB alone; the first thread 17 MB, each more 43 MB: three fit into 70 + 3 × 43."""
    given = intent(profile(thread_mb=43), {"NOW_LMS_WSGI_SERVER": "waitress"})
    assert variables(given)["NOW_LMS_WORKER_MEMORY_MB"] == "43"
    assert given.memory_mb >= (70 + 17 + 2 * 43) / 0.7


def test_autoscaler_of_cpu_has_a_target_that_this_app_reaches() -> None:
    """With 5 ms + 45 ms it uses 30 % of a CPU when all 3 slots are busy; 70 % of that are 21."""
    files = kubernetes(intent(profile(5, 45), replicas="2..6"))
    (scaler,) = of_kind("HorizontalPodAutoscaler", files)
    assert scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 21
    text = shown(files)
    assert "with all slots busy it uses 30 % of its CPUs" in text
    assert "--autoscale keda" in text
    computing = kubernetes(intent(profile(45, 5), replicas="2..6"))
    (scaler,) = of_kind("HorizontalPodAutoscaler", computing)
    assert scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    assert "--autoscale keda" not in shown(computing)


def test_cpu_that_one_process_cannot_use_is_not_aimed_at() -> None:
    """Waitress computes on one CPU of four, however many threads are busy."""
    environ = {"NOW_LMS_WSGI_SERVER": "waitress"}
    given = intent(profile(50, 0), environ, cpus="4", replicas="2..6")
    assert derive.cpu_target(given) == (17, 0.25)


def test_keda_sums_busy_slots_over_all_pods() -> None:
    files = kubernetes(intent(profile(), replicas="2..6", autoscale="keda"))
    (scaler,) = of_kind("ScaledObject", files)
    (trigger,) = scaler["spec"]["triggers"]
    metadata = trigger["metadata"]
    assert metadata["valueLocation"] == "busy"
    assert (metadata["aggregationType"], metadata["targetValue"]) == ("sum", "2.1")
    assert metadata["aggregateFromKubeServiceEndpoints"] == "true"
    services = {item["metadata"]["name"]: item["spec"] for item in of_kind("Service", files)}
    assert services["lms-health"]["clusterIP"] == "None"
    assert metadata["url"].startswith("http://lms-health.default.svc:8081/")
    assert of_kind("HorizontalPodAutoscaler", files) == []


@pytest.mark.parametrize(("replicas", "has_line"), [("3", True), ("2..6", False)])
def test_an_autoscaler_is_not_fought_with(replicas: str, has_line: bool) -> None:
    (deployment,) = of_kind("Deployment", kubernetes(intent(replicas=replicas)))
    assert ("replicas" in deployment["spec"]) is has_line


def test_health_port_is_nowhere_published() -> None:
    files = kubernetes(intent(profile()))
    for item in of_kind("Service", files):
        ports = [port["port"] for port in item["spec"]["ports"]]
        assert ports == [80] or item["spec"]["clusterIP"] == "None"
    (compose,) = documents(render("compose", intent()))
    assert "ports" not in compose["services"]["lms"]
    assert "tmpfs" not in compose["services"]["lms"]
    assert "EXPOSE 8080\n" in render("dockerfile", intent())["Dockerfile"]


def test_balancers_get_the_slots_of_the_plan_and_repeat_only_what_changes_nothing() -> None:
    for target in ("haproxy", "compose"):
        text = render(target, FIXED["haproxy"])["haproxy.cfg"]
        assert "maxconn 4\n" in text
        assert "disable-l7-retry unless METH_GET || METH_HEAD" in text
        (retried,) = re.findall(r"^    retry-on (.*)$", text, re.M)
        assert "503" not in retried
    (retried,) = re.findall(r"proxy_next_upstream (.*);", render("nginx", intent())["nginx.conf"])
    assert retried == "error timeout"


ADAPTIVE = {"NOW_LMS_SIZING": "adaptive"}


@pytest.mark.parametrize(
    ("changes", "pool", "slots", "why"),
    [
        ({}, None, 192, "3 workers × 64 threads"),
        ({}, 15, 45, "3 workers × 15 threads"),
        ({"NOW_LMS_MAX_WORKERS": "2"}, 15, 30, "2 workers × 15 threads"),
        ({"NOW_LMS_THREADS": "4"}, None, 12, "3 workers × 4 threads"),
        ({"NOW_LMS_WSGI_SERVER": "waitress"}, None, 64, "64 threads"),
    ],
)
def test_what_limits_an_adaptive_size_from_outside_is_its_upper_bound(
    changes: dict[str, str], pool: int | None, slots: int, why: str
) -> None:
    given = intent(
        environ=ADAPTIVE | changes, memory="512M", pool=pool, replicas="2..6", autoscale="keda"
    )
    assert derive.slots(given).value == str(slots)
    assert derive.slots(given).why == f"slots at most, since the size follows the load: {why}"
    assert variables(given)["NOW_LMS_SIZING"] == "adaptive"
    for target in ("haproxy", "compose"):
        assert f" maxconn {slots}\n" in render(target, given)["haproxy.cfg"]
    assert f"max_conns={slots} (slots at most" in render("nginx", given)["nginx.conf"]
    assert f"containerConcurrency: {slots} " in render("cloudrun", given)["cloudrun.yaml"]
    (scaler,) = of_kind("ScaledObject", kubernetes(given))
    assert scaler["spec"]["triggers"][0]["metadata"]["targetValue"] == f"{0.7 * slots:.1f}"
    head = kubernetes(given)["kubernetes.yaml"].partition("apiVersion")[0]
    assert "; adapts: " in head
    assert "# The size follows the load within these bounds" in head


def test_cpu_target_of_an_adaptive_size_counts_the_slots_that_it_can_get() -> None:
    """5 ms + 45 ms: three slots use 30 % of a CPU, 192 all of it."""
    assert derive.cpu_target(intent(profile())).percent == 21
    assert derive.cpu_target(intent(profile(), ADAPTIVE)).percent == 70


def test_cloud_run_gets_no_more_requests_at_once_than_it_takes() -> None:
    given = intent(environ=ADAPTIVE, memory="4G", cpus="8")
    assert derive.slots(given).value == str(17 * 64)
    assert "containerConcurrency: 1000 " in render("cloudrun", given)["cloudrun.yaml"]


def test_no_worker_is_pinned_but_those_of_the_app_itself_are_counted() -> None:
    environ = {"NOW_LMS_WORKERS": "9", "NOW_LMS_THREADS": "2"}
    given = intent(environ=environ, memory="4G", cpus="2")
    assert derive.plan_of(given).workers == 2
    assert variables(given)["NOW_LMS_THREADS"] == "2"
    built_in = SizingSettings.load(
        environ={"NOW_LMS_WSGI_SERVER": "gunicorn"}, config={"WORKERSIZE_WORKERS": 3}
    )
    assert derive.plan_of(replace(given, settings=built_in)).workers == 3


def test_address_in_the_config_of_the_app_does_not_make_it_unreachable() -> None:
    config = {"WORKERSIZE_HOST": "127.0.0.1", "WORKERSIZE_PORT": 5000}
    given = replace(intent(), settings=SizingSettings.load(environ={}, config=config))
    there = SizingSettings.load(environ=variables(given), config=config)
    assert there.addresses == ("0.0.0.0:8080",)
    assert there.health_address == "0.0.0.0:8081"


def test_no_secret_is_exported() -> None:
    given = intent(environ={"NOW_LMS_HEALTH_TOKEN": SECRET})
    for target in TARGETS:
        assert SECRET not in shown(render(target, given))


@pytest.mark.parametrize("target", ["prometheus", "grafana"])
def test_every_metric_that_is_asked_for_is_there(target: str) -> None:
    known = {f"workersize_{metric}" for metric in _PLANNED.values()}
    known.add("workersize_queue_seconds_bucket")
    for figure in FIGURES.values():
        if figure.metric:
            known.add(f"workersize_{figure.metric}{'_total' if figure.is_counter else ''}")
    text = shown(render(target, intent()))
    asked_for = set(re.findall(r"\bworkersize_\w+", text)) - {"workersize_rules"}
    assert asked_for
    assert asked_for <= known


def test_cloud_run_stops_within_the_ten_seconds_that_it_gives() -> None:
    (service,) = documents(render("cloudrun", intent()))
    spec = service["spec"]["template"]["spec"]
    environment = {item["name"]: item["value"] for item in spec["containers"][0]["env"]}
    assert environment["NOW_LMS_GRACEFUL_TIMEOUT"] == "8"
    assert "NOW_LMS_DRAIN_SECONDS" not in environment
    assert spec["containerConcurrency"] == 3


@pytest.mark.parametrize(
    ("budget", "blocks"),
    [({"max_unavailable": 1}, False), ({"max_unavailable": 0}, True)]
    + [({"min_available": number}, number >= 2) for number in (0, 1, 2, 3)],
)
def test_budget_that_blocks_every_drain_is_known(budget: dict[str, int], blocks: bool) -> None:
    assert derive.blocks_drains(2, **budget) is blocks


@pytest.mark.parametrize("replicas", ["1", "2", "1..2", "300"])
def test_no_budget_that_blocks_every_drain_is_exported(replicas: str) -> None:
    """So there is nothing to refuse: a single replica is moved, too."""
    (exported,) = of_kind("PodDisruptionBudget", kubernetes(intent(replicas=replicas)))
    assert exported["spec"].keys() == {"maxUnavailable", "selector"}
    assert not derive.blocks_drains(1, exported["spec"]["maxUnavailable"])


def test_every_template_is_of_a_size_that_can_be_read() -> None:
    folder = Path(derive.__file__).parent / "templates"
    lines = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.j2")}
    assert len(lines) >= len(TARGETS)
    assert {name: number for name, number in lines.items() if number > 100} == {}
