"""Whatever the environment and the files hold together: a plan, or one line that says why not.

``python -m tests.fuzz 100000`` does the same with that many inputs.
"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from flask_workersize import (
    HostFacts,
    SizingPlan,
    SizingSettings,
    WorkerSizeConfigError,
    compute_plan,
    detect_resources,
)
from flask_workersize.cli.format import as_json, explain
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.sources import GUNICORN_ARGS
from tests.resources.machines import FixtureFiles
from tests.resources.strategies import garbage_files, hosts, machines, unreadables

SECRET = "s3cr3t-7f3a"
TOKEN = "t0k3n-9b1c"
VARIABLES = [GUNICORN_ARGS, *(name for names in NAMES.values() for name in names.variables)]
COUNTS = ["workers", "threads", "worker_memory_mb", "min_workers", "max_workers"]
COUNTED = [name for setting in COUNTS for name in NAMES[setting].variables]
USUAL = ["", " ", "0", "-1", "4", " 4 ", "4.0", "auto", "on", "gunicorn", "waitress", "*", "many"]
USUAL += ["tcp://10.0.0.1:80", "unix:", "'", "--workers", f"x{SECRET}"]
servers = st.fixed_dictionaries({"WSGI_SERVER": st.sampled_from(["gunicorn", "waitress"])})
sizes = st.dictionaries(
    st.sampled_from(COUNTED), st.integers(1, 300).map(str) | st.just(""), max_size=4
)
anything = st.dictionaries(
    st.sampled_from(VARIABLES), st.sampled_from(USUAL) | st.text(max_size=12), max_size=3
)
tokens = st.fixed_dictionaries({}, optional={"NOW_LMS_HEALTH_TOKEN": st.just(TOKEN)})
environs = st.builds(
    lambda *parts: {name: value for part in parts for name, value in part.items()},
    st.builds(lambda *parts: {**parts[0], **parts[1]}, servers, sizes) | anything,
    tokens,
)
files = st.one_of(garbage_files, machines().map(lambda machine: machine.files))
other_hosts = st.builds(
    HostFacts,
    cpus=st.integers(-1, 4096),
    affinity=st.none() | st.integers(0, 4096),
    memory_total=st.integers(0, 2**50),
    memory_available=st.integers(0, 2**50),
    platform=st.sampled_from(["linux", "linux", "darwin", "win32"]),
)


def check_line(message: str) -> None:
    assert len(message.splitlines()) == 1
    assert SECRET not in message
    assert TOKEN not in message


def plan_or_line(
    environ: dict[str, str], host: HostFacts, files: dict[str, str], unreadable: set[str]
) -> SizingPlan | None:
    """Go the whole way from the environment and the files to what a person reads.

    :returns: the plan; ``None`` where the settings are refused
    """
    resources = detect_resources(host, FixtureFiles(files, unreadable))
    try:
        asked = SizingSettings.load(environ=environ).for_platform(host.platform)
    except WorkerSizeConfigError as error:
        check_line(error.message)
        return None
    plan = compute_plan(asked, resources)
    assert isinstance(plan, SizingPlan)
    assert plan.workers >= 1
    assert plan.threads >= 1
    assert plan.memory_available_mb >= 0
    assert plan.cpu_bound >= 1
    text = explain(asked, resources, plan)
    told = json.loads(as_json(asked, resources, plan))
    assert told["plan"]["concurrency"] == plan.workers * plan.threads
    assert told["one_more"].keys() > {"what"}
    assert TOKEN not in text
    assert TOKEN not in json.dumps(told)
    return plan


@settings(deadline=None, max_examples=150)
@given(environs, hosts | other_hosts, files, unreadables)
def test_any_environment_on_any_machine(
    environ: dict[str, str], host: HostFacts, files: dict[str, str], unreadable: set[str]
) -> None:
    plan_or_line(environ, host, files, unreadable)
