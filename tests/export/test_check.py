"""What is checked: nothing is found in an export, and each rule finds its fault in any manifest."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_workersize import WorkerSizeConfigError
from flask_workersize.export.check import nodes
from flask_workersize.export.check.table import RULES, Finding, check
from flask_workersize.export.check.value import (
    docker,
    kubernetes,
    kubernetes_memory,
    seconds,
    systemd,
)
from flask_workersize.export.check.workload import Facts
from flask_workersize.export.intent import Intent
from flask_workersize.export.render import TARGETS, render
from flask_workersize.servers.launch import gunicorn_args
from tests.export.intents import asked, intent, intents, profile
from tests.plain import MB, untimed

MANIFESTS = Path(__file__).parent / "manifests"
ABOUT_THE_FILES = {"nothing", "unknown-slots", "not-measured"}
"""Notes of an export, of which each file is checked alone."""

GUNICORN = {"NOW_LMS_WSGI_SERVER": "gunicorn"}
WAITRESS = {"NOW_LMS_WSGI_SERVER": "waitress"}


def facts(given: Intent, db_connections: int | None = None) -> Facts:
    """Return what is known where an intent was exported."""
    held = given.loaded_mb * MB
    return Facts(given.settings, {}, held, None, db_connections, gunicorn_args, given.pool)


def without_app(db_connections: int | None = None) -> Facts:
    return Facts(asked(), db_connections=db_connections, gunicorn_args=gunicorn_args)


def found(text: str, file: str = "-", known: Facts | None = None) -> list[Finding]:
    return check({file: text}, known or without_app())


def refusal(text: str, file: str, known: Facts | None = None) -> str | None:
    """Return the line that refuses a file, or ``None``; what is found can be printed."""
    try:
        findings = found(text, file, known)
    except WorkerSizeConfigError as error:
        return error.message
    assert all(finding.what.isprintable() for finding in findings)
    return None


def names(findings: list[Finding]) -> set[str]:
    return {finding.rule for finding in findings}


@settings(untimed, max_examples=15)
@given(given=intents(), more_mb=st.integers(-16, 16))
def test_nothing_is_found_in_what_is_exported(given: Intent, more_mb: int) -> None:
    """Whatever the intent, and each target by itself; the loaded app may hold some more or less."""
    held = max(0, given.loaded_mb + more_mb) * MB
    known = replace(facts(given), held_bytes=held)
    for target in TARGETS:
        findings = check(render(target, given), known)
        assert [str(finding) for finding in findings if not finding.is_note] == []
        assert names(findings) <= ABOUT_THE_FILES


@settings(untimed, max_examples=15)
@given(given=intents(), line=st.integers(0, 200), text=st.text(max_size=20))
def test_an_export_with_a_broken_line_is_found_out_or_refused(
    given: Intent, line: int, text: str
) -> None:
    """And never ends in another error."""
    for target in ("kubernetes", "compose", "systemd", "haproxy", "nginx", "cloudrun"):
        for file, whole in render(target, given).items():
            lines = whole.splitlines()
            key = lines[line % len(lines)].partition(":")[0]
            lines[line % len(lines)] = f"{key}: {text}"
            problem = refusal("\n".join(lines), file, facts(given))
            assert problem is None or problem.startswith(f"{file} is not valid YAML in line ")


MUTATIONS = [
    ("memory-limit", "kubernetes", "limits: {cpu", "requests2: {cpu"),
    ("memory-limit", "compose", "limits: {cpus", "limit: {cpus"),
    ("memory-limit", "cloudrun", ", memory: 712Mi", ""),
    ("unit-memory-limit", "systemd", "MemoryMax=712M", "MemoryMax=infinity"),
    ("repeated-key", "kubernetes", "  minReadySeconds: 5", "  minReadySeconds: 5\n  selector: {}"),
    ("repeated-key", "compose", "user:", "user: root\n    user:"),
    ("memory-need", "kubernetes", "memory: 712Mi", "memory: 128Mi"),
    ("memory-need", "systemd", "MemoryMax=712M", "MemoryMax=128M"),
    ("pinned-too-many", "kubernetes", "env:", "env:\n            - {name: WORKERS, value: 9}"),
    ("pinned", "kubernetes", "env:", "env:\n            - {name: WORKERS, value: 2}"),
    ("quantity", "kubernetes", 'cpu: "1"', 'cpu: "1 core"'),
    ("quantity", "kubernetes", "memory: 712Mi", "memory: 712m"),
    ("quantity", "compose", "memory: 712M", "memory: much"),
    ("quantity", "compose", "replicas: 3", "replicas: NaN"),
    ("quantity", "cloudrun", 'maxScale: "3"', 'maxScale: "-1"'),
    ("quantity", "kubernetes", "GracePeriodSeconds: 45", "GracePeriodSeconds: 1m"),
    ("quantity", "systemd", "MemoryMax=712M", "MemoryMax=712 pages"),
    ("settings", "kubernetes", 'TIMEOUT, value: "30"', 'TIMEOUT, value: "soon"'),
    ("doubtful-settings", "compose", "NOW_LMS_GRACEFUL_TIMEOUT", "NOW_LMS_GRACEFUL_TIMOUT"),
    ("grace", "kubernetes", "GracePeriodSeconds: 45", "GracePeriodSeconds: 40"),
    ("grace", "kubernetes", "terminationGracePeriodSeconds", "terminationGracePeriod"),
    ("grace", "compose", "stop_grace_period: 45s", "stop_grace_period: 0m40s"),
    ("grace", "systemd", "TimeoutStopSec=35", "TimeoutStopSec=30"),
    ("probe-port", "kubernetes", "path: /live, port: health", "path: /live, port: http"),
    ("probe-port", "compose", "127.0.0.1:8081", "127.0.0.1:8080"),
    ("probe-port", "haproxy", "check port 8081", "check"),
    ("service-links", "kubernetes", "enableServiceLinks: false", "enableServiceLinks: true"),
    ("health-published", "kubernetes", "clusterIP: None", "type: NodePort"),
    ("health-published", "compose", "init: false", 'ports: ["8080-8081:8080-8081"]'),
    ("health-published", "systemd", "HEALTH_HOST=127.0.0.1", "HEALTH_HOST=0.0.0.0"),
    ("read-only", "kubernetes", "mountPath: /tmp", "mountPath: /tmpfiles"),
    ("read-only", "compose", "target: /tmp,", "target: /data,"),
    ("read-only", "systemd", "=yes\n", "=no\n"),
    ("stack-tmpfs", "compose", "init: false", "tmpfs: [/tmp]"),
    ("cpu-target", "kubernetes", "averageUtilization: 21", "averageUtilization: 70"),
    ("not-measured", "kubernetes", "kind: HorizontalPod", "kind: HorizontalPod"),
    ("db-connections", "kubernetes", "maxReplicas: 6", "maxReplicas: 60"),
    ("keda", "kubernetes", "valueLocation: busy", "valueLocation: utilization"),
    ("keda", "kubernetes", 'ServiceEndpoints: "true"', 'ServiceEndpoints: "false"'),
    ("keda", "kubernetes", "aggregationType: sum", "aggregationType: average"),
    ("replicas", "kubernetes", "revisionHistoryLimit", "replicas: 2\n  revisionHistoryLimit"),
    ("budget", "kubernetes", "maxUnavailable: 1 ", "maxUnavailable: 0 "),
    ("budget", "kubernetes", "maxUnavailable: 1 ", "minAvailable: 2 "),
    ("netlink", "systemd", " AF_NETLINK\n", "\n"),
    ("memory-high", "systemd", "MemoryMax=", "MemoryHigh=700M\nMemoryMax="),
    ("oom-policy", "systemd", "OOMPolicy=continue\n", ""),
    ("oom-policy", "systemd", "OOMPolicy=continue", "OOMPolicy=stop"),
    ("proc-subset", "systemd", "ProtectProc=", "ProcSubset=pid\nProtectProc="),
    ("maxconn", "compose", "layer4 maxconn 3", "layer4 maxconn 2"),
    ("maxconn", "compose", "environment:", "environment:\n      NOW_LMS_SIZING: adaptive"),
    ("maxconn", "cloudrun", "containerConcurrency: 3", "containerConcurrency: 2"),
    ("repeated-503", "haproxy", "empty-response", "empty-response 503"),
    ("repeated-503", "nginx", "next_upstream error", "next_upstream http_503"),
    ("forwarded-allow-ips", "kubernetes", "NOW_LMS_GRACEFUL_TIMEOUT", "FORWARDED_ALLOW_IPS"),
    ("unknown-slots", "haproxy", "layer4", "layer4"),
    ("elsewhere", "kubernetes", "env:", "envFrom: [{configMapRef: {name: a}}]\n          env:"),
    ("left-out", "kubernetes", "  name: lms-health", "  name: lms-health"),
    ("nothing", "prometheus", "groups", "groups"),
]
"""A rule, an export in which it finds nothing, and what is replaced by what."""


@pytest.mark.parametrize(("rule", "target", "old", "new"), MUTATIONS)
def test_each_rule_finds_its_fault_in_an_export(rule: str, target: str, old: str, new: str) -> None:
    scaler = "keda" if rule == "keda" else "cpu"
    measured = profile() if rule == "cpu-target" else None
    environ = WAITRESS if rule == "forwarded-allow-ips" else GUNICORN
    changes = {} if target != "kubernetes" else {"replicas": "2..6", "autoscale": scaler}
    given = intent(measured, environ, memory="712M", **changes)
    known = facts(given, 6 * 3 * 15)
    files = render(target, given)
    assert rule not in names(check(files, known)) or rule in ABOUT_THE_FILES
    assert any(old in text for text in files.values())
    changed = {file: text.replace(old, new) for file, text in files.items()}
    if rule == "left-out":
        changed["other.yaml"] = files["kubernetes.yaml"].replace("NOW_LMS", "OTHER")
    hits = [finding for finding in check(changed, known) if finding.rule == rule]
    assert hits
    assert all(finding.is_note == (rule in NOTES) for finding in hits)


NOTES = {rule.name for rule in RULES if rule.is_note}
MARK = re.compile(r"(.*)# <- ([\w, -]+)$")


def marked(path: Path) -> Counter[tuple[int, str]]:
    """Return the rules that a manifest is marked with, and their lines: its own, or the next."""
    marks: Counter[tuple[int, str]] = Counter()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := MARK.match(line):
            at = number if match[1].strip() else number + 1
            marks.update((at, rule) for rule in match[2].split(", "))
    return marks


@pytest.mark.parametrize("path", sorted(MANIFESTS.iterdir()), ids=lambda path: path.name)
def test_manifests_of_another_make_have_the_faults_they_are_marked_with(path: Path) -> None:
    """Each at its line, and no others."""
    findings = found(path.read_text(), path.name, without_app(db_connections=100))
    assert Counter((finding.line, finding.rule) for finding in findings) == marked(path)


def test_every_rule_is_shown_by_an_export_and_by_a_manifest_of_another_make() -> None:
    rules = {rule.name for rule in RULES}
    assert {rule for rule, *_ in MUTATIONS} == rules
    shown = {rule for path in MANIFESTS.iterdir() for _, rule in marked(path)}
    # It needs a profile: below.
    assert shown | {"cpu-target"} == rules


def test_target_that_the_measured_app_cannot_reach() -> None:
    """8 workers that compute for 5 of 50 ms use 80 % of the CPU that is requested."""
    text = (MANIFESTS / "deployment.yaml").read_text()
    known = Facts(asked(profile()), gunicorn_args=gunicorn_args)
    (hit,) = [item for item in found(text, known=known) if item.rule == "cpu-target"]
    assert hit.what == "lms has a CPU target of 90 %, and uses 80 % when all its 8 slots are busy"
    assert hit.remedy == "Set it to 56, or scale by busy slots."
    assert "averageUtilization: 90" in text.splitlines()[hit.line - 1]
    assert "cpu-target" not in names(found(text.replace(": 90}", ": 79}"), known=known))


def test_measured_need_counts_instead_of_the_guess() -> None:
    """8 workers of 17 MB, and 80 MB: 216 MB. With 200 MB each they would not fit."""
    text = (MANIFESTS / "deployment.yaml").read_text()
    known = Facts(asked(profile()), gunicorn_args=gunicorn_args)
    assert "pinned-too-many" in names(found(text))
    assert {"pinned"} == names(found(text, known=known)) & {"pinned", "pinned-too-many"}
    (hit,) = [
        item
        for item in found(text.replace("memory: 512Mi", "memory: 215Mi"), known=known)
        if item.rule == "pinned-too-many"
    ]
    assert hit.what.endswith("in 215 MB, but they need 80 + 8 × 17 = 216 MB, as measured")


def test_balancer_and_app_in_two_files_are_checked_together() -> None:
    balancer = (MANIFESTS / "nginx.conf").read_text()
    files = {"stack.yml": (MANIFESTS / "knative.yaml").read_text(), "nginx.conf": balancer}
    hits = [item for item in check(files, without_app()) if item.file == "nginx.conf"]
    assert [item.rule for item in hits] == ["maxconn", "repeated-503"]


@pytest.mark.parametrize(("pool", "slots"), [(None, 192), (10, 30)])
def test_adaptive_size_needs_a_balancer_that_leaves_room_to_grow(
    pool: int | None, slots: int
) -> None:
    """And its pools are those of the most workers."""
    given = intent(environ=GUNICORN | {"NOW_LMS_SIZING": "adaptive"}, memory="512M", pool=pool)
    files = render("compose", given)
    files["haproxy.cfg"] = files["haproxy.cfg"].replace(f"maxconn {slots}\n", "maxconn 3\n")
    (hit,) = [item for item in check(files, facts(given)) if not item.is_note]
    assert hit.what == f"lms has {slots} slots, and gets 3 requests at once"
    hits = [item.rule for item in check(files, facts(given, 3 * 3 * 15 - 1))]
    assert hits == ["db-connections", "maxconn"]


def test_a_list_of_kubectl_is_the_same_as_its_documents() -> None:
    text = (MANIFESTS / "deployment.yaml").read_text()
    items = list(yaml.safe_load_all(text))
    as_list = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
    assert names(found(as_list)) == names(found(text))


@pytest.mark.parametrize("kind", ["List", "DeploymentList"])
def test_lists_and_several_documents_are_read_to_the_end(kind: str) -> None:
    """As charts and ``kubectl get`` print them."""
    one = render("kubernetes", intent())["kubernetes.yaml"].partition("---")[0]
    bad = one.replace("GracePeriodSeconds: 45", "GracePeriodSeconds: 5")
    items = "".join("- " + item.strip().replace("\n", "\n  ") + "\n" for item in (one, bad))
    text = f"# Source: lms/templates/list.yaml\napiVersion: v1\nkind: {kind}\nitems:\n{items}"
    (hit,) = found(text)
    assert (hit.rule, "GracePeriodSeconds: 5 " in text.splitlines()[hit.line - 1]) == (
        "grace",
        True,
    )
    (same,) = found(f"---\n# empty\n---\n{one}---\n{bad}---\n")
    assert same.what == hit.what


def test_a_drop_in_is_judged_by_the_lines_that_it_has() -> None:
    unit = render("systemd", intent())["lms.service"]
    drop_in = "[Service]\nTimeoutStopSec=20\nRestrictAddressFamilies=AF_INET\n"
    files = {"lms.service": unit, "lms.service.d/mine.conf": drop_in}
    hits = [(item.rule, item.line) for item in check(files, without_app()) if not item.is_note]
    assert hits == [("grace", 2), ("netlink", 3)]


def units_of_the_docs() -> dict[str, str]:
    """Return every block of the docs that is a service of systemd, or a part of one."""
    blocks = {}
    for path in sorted((Path(__file__).parents[2] / "docs").glob("*.rst")):
        for match in re.finditer(r"(?m)(^(    .*)?\n)+", path.read_text()):
            if "[Service]\n" in match[0] and "$ " not in match[0]:
                blocks[f"{path.stem}-{match.start()}.service"] = textwrap.dedent(match[0])
    return blocks


def test_units_of_the_docs_have_no_findings() -> None:
    units = units_of_the_docs()
    assert len(units) >= 6
    assert any("\nOOMPolicy=continue\n" in text and "ExecStart=" in text for text in units.values())
    found_there = check(units, without_app())
    assert [str(finding) for finding in found_there if not finding.is_note] == []


@pytest.mark.parametrize("name", ["Slice=lms.slice", "MemoryMax=50%"])
def test_a_limit_that_is_not_known_is_one(name: str) -> None:
    unit = render("systemd", intent())["lms.service"]
    assert names(found(re.sub("MemoryMax=.*", name, unit))) == set()


def test_only_a_service_with_an_address_is_a_variable_that_is_not_set() -> None:
    """A headless one makes none, and a variable of the container wins."""
    text = (MANIFESTS / "deployment.yaml").read_text()
    alone = text.partition("---")[0]
    headless = text.replace("type: LoadBalancer", "clusterIP: None")
    own = text.replace("env:\n", "env:\n            - {name: LMS_PORT, value: 8080}\n")
    other = text.replace("  name: lms\nspec:\n  type", "  name: web\nspec:\n  type")
    has_it = ["service-links" in names(found(item)) for item in (text, alone, headless, own, other)]
    assert has_it == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (kubernetes, "1 core", None),
        (kubernetes, "512 Mi", None),
        (kubernetes, "512MB", None),
        (kubernetes, "0.5.1", None),
        (kubernetes, "", None),
        (kubernetes, "-1", None),
        (kubernetes, "1e999999999", None),
        (kubernetes, "250m", 0.25),
        (kubernetes, ".5", 0.5),
        (kubernetes, "2e3", 2000),
        (kubernetes, "1.5Gi", 1.5 * 1024 * MB),
        (kubernetes, "512M", 512e6),
        (kubernetes_memory, "512m", None),
        (kubernetes_memory, "512", None),
        (kubernetes_memory, "0", 0),
        (docker, "512m", 512 * MB),
        (docker, "1.5 GiB", 1536 * MB),
        (docker, "half", None),
        (systemd, "1G", 1024 * MB),
        (systemd, "1g", None),
        (systemd, "infinity", float("inf")),
        (seconds, "1m30s", 90),
        (seconds, "2min 3s", 123),
        (seconds, "90", 90),
        (seconds, "500ms", 0.5),
        (seconds, "1 fortnight", None),
        (seconds, "1" * 5000 + "x", None),
        (seconds, "", None),
    ],
)
def test_quantities_and_times_are_parsed_strictly(
    parse: object, text: str, value: float | None
) -> None:
    assert callable(parse)
    assert parse(text) == value


ODD_NUMBERS = ["1e3Mi", "-1", "NaN", ".inf", "1e400", "0x20", "1_000", '"\u0661Gi"', "512MiB"]


@pytest.mark.parametrize("text", ODD_NUMBERS)
@pytest.mark.parametrize(
    "old", ["memory: 712Mi", 'cpu: "1"', "terminationGracePeriodSeconds: 45", "replicas: 3"]
)
def test_odd_numbers_are_found_wherever_they_are(old: str, text: str) -> None:
    manifest = render("kubernetes", intent())["kubernetes.yaml"]
    key = old.partition(":")[0]
    (line, *_) = [n for n, row in enumerate(manifest.splitlines(), 1) if old in row]
    hits = found(manifest.replace(old, f"{key}: {text}"))
    assert {hit.rule for hit in hits} == {"quantity"}
    assert line in {hit.line for hit in hits}


@pytest.mark.parametrize("text", ["NaN", "-1", "1e9", "${SLOTS}", ""])
def test_limits_of_a_balancer_that_are_no_numbers_are_left_to_its_own_check(text: str) -> None:
    haproxy = f"backend lms\n server a 10.0.0.1:80 maxconn {text}\n"
    nginx = f"upstream lms {{\n server a max_conns={text};\n}}\n"
    assert found(haproxy) == found(nginx) == []


@pytest.mark.parametrize("name", ["a\u001b[31mb", "l\nms", "\u202elms", "", "{{ x }}", "x" * 9999])
def test_odd_names_are_shown_in_one_line(name: str) -> None:
    text = render("kubernetes", intent(drain="0"))["kubernetes.yaml"].replace("30", "soon")
    hits = found(text.replace("  name: lms\n", f"  name: {json.dumps(name)}\n"))
    assert hits
    assert all(str(hit).isprintable() and len(str(hit)) < 1000 for hit in hits)
    assert not any(str(hit).startswith((" ", "-:1:  ")) for hit in hits)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n---\n",
        "a: &a [*a]\nservices: *a",
        "services: &a {<<: *a}",
        "services: &a\n  web: &b {<<: *b, deploy: *a, environment: *a}",
        "apiVersion: v1\nkind: List\nitems: &a [{apiVersion: v1, kind: List, items: *a}, *a]",
        "apiVersion: apps/v1\nkind: Deployment",
        "apiVersion: [1]\nkind: {a: b}\nspec: 3",
        "services: [web]",
        "services: {web: }",
        "services: {web: {environment: 3, ports: {a: b}, command: [[], {}], volumes: [3]}}",
        "? [a, b]\n: c\nservices: {? [x, y] : z, web: {image: !!python/name:os.system }}",
        '{"apiVersion": "v1", "kind": "Secret"}',
        f"services: {{web: {{image: {'/postgres-a' * 50_000}!, command: '{'sleep ' * 50_000}'}}}}",
    ],
)
def test_odd_documents_are_no_trouble(text: str) -> None:
    """Nor long ones, as long as each part is looked at once."""
    assert all(finding.line == 1 for finding in found(text, "x.yaml") if finding.rule == "nothing")


@pytest.mark.parametrize(
    "text", ["upstream a {\n" + "server " * 100_000, "\n" * 500_000, "a " * 100_000]
)
def test_long_lines_are_no_trouble(text: str) -> None:
    assert names(found(text)) <= {"nothing"}


LAUGHS = "\n".join(
    ["a0: &a0 {x: y}"]
    + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], a: *a{n - 1}}}" for n in range(1, 60)]
)


def test_a_billion_laughs_are_none() -> None:
    assert names(found(f"{LAUGHS}\nservices: *a59\n", "x.yaml")) == {"memory-limit", "grace"}


def test_a_document_that_repeats_itself_is_read_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "_MOST_STEPS", 20_000)
    variables = "".join(f"  - {{name: V{n}}}\n" for n in range(100))
    boxes = "".join(f"  - {{image: i{n}, env: *e}}\n" for n in range(100))
    pod = "{apiVersion: apps/v1, kind: Deployment, spec: {template: {spec: {containers: *c}}}}"
    text = f"e: &e\n{variables}c: &c\n{boxes}apiVersion: v1\nkind: List\nitems:\n"
    text += f"  - {pod}\n" * 100
    with pytest.raises(WorkerSizeConfigError, match="repeats itself too often"):
        found(text, "x.yaml")


@pytest.mark.parametrize("deep", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused(deep: str) -> None:
    with pytest.raises(WorkerSizeConfigError, match="is not valid YAML"):
        found(deep * 20_000, "x.yaml")


def test_a_template_is_told_how_to_be_rendered() -> None:
    with pytest.raises(WorkerSizeConfigError, match=r"in line 2\. .*helm template"):
        found("kind: Deployment\nname: {{ .Values.name }}\n", "deployment.yaml")


@settings(untimed, max_examples=60)
@given(text=st.text() | st.from_regex(r"\A(\[Service\]|backend a|upstream a \{)\n.{0,40}"))
def test_no_text_is_a_traceback(text: str) -> None:
    for file in ("-", "x.service", "x.yaml"):
        assert len((refusal(text, file) or "").splitlines()) <= 1


def test_variables_that_are_not_known_are_not_judged() -> None:
    """A limit, a port and a drain from elsewhere may be right."""
    text = (MANIFESTS / "deployment.yaml").read_text()
    known = {"NOW_LMS_HEALTH_PORT", "NOW_LMS_DRAIN_SECONDS", "NOW_LMS_WORKERS"}
    unknown = re.sub(
        rf"({'|'.join(known)})(, |\n +)value: .*?(}}|\n)",
        r"\1\2valueFrom: {fieldRef: {fieldPath: a}}\3",
        text,
    )
    assert unknown.count("fieldRef") == 3
    before, after = names(found(text)), names(found(unknown))
    assert before - after == {"pinned-too-many", "grace", "probe-port", "health-published"}
    assert after <= before


def test_secrets_are_not_shown() -> None:
    text = render("kubernetes", intent())["kubernetes.yaml"]
    said = found(text.replace('TIMEOUT, value: "30"', 'TIMEOUT, value: "hunter2"'))
    assert names(said) == {"settings"}
    assert "hunter2" not in "".join(map(str, said))
