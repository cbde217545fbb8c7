"""What is planned with a measured profile, against what the kernel counts in a group of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flask_workersize.sizing.plan import compute_plan
from flask_workersize.sizing.profile import SizingProfile
from flask_workersize.sizing.settings import SizingSettings
from flask_workersize.sizing.validators import ServerName
from tests.plain import load, resources
from tests.resources.own_files import OwnFiles, mapped_files
from tests.resources.real_groups import RealGroup, group_or_skip
from tests.servers.clients import PATH
from tests.servers.serving import Starter, flask, serve_prod, starter

APP = "costly:create_app"
WITHIN = 0.10
"""Share by which a plan may be off."""

SHAPES: list[tuple[ServerName, dict[str, int]]] = [
    ("gunicorn", {"workers": 4, "threads": 1}),
    ("gunicorn", {"workers": 2, "threads": 4}),
    ("waitress", {"threads": 4}),
]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Run commands in a folder of the test's own."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture
def group() -> Iterator[RealGroup]:
    """Make a group; who ends last is its servers' starter."""
    with group_or_skip() as group:
        yield group


def planned_mb(profile: SizingProfile, server: ServerName, shape: dict[str, int]) -> int:
    """Return what a plan of this shape says that it needs."""
    environ = {f"NOW_LMS_{name.upper()}": str(count) for name, count in shape.items()}
    settings: SizingSettings = load(environ).measured_by(profile)
    return compute_plan(settings, resources(2, 8192), server).estimated_memory_mb


def test_plan_of_a_measured_app_is_what_the_kernel_counts(
    group: RealGroup, start: Starter, tmp_path: Path
) -> None:
    """With sync, gthread and waitress; each has the files of Python to itself."""
    (tmp_path / "files").mkdir()
    try:
        own = OwnFiles(group, tmp_path / "files", mapped_files([os.getpid()]))
    except OSError as error:
        pytest.skip(f"no file can be mounted here: {error}")
    file = tmp_path / "profile.json"
    command = ["workersize", "measure", "--path", "/none", "--requests", "8", "--concurrency", "1"]
    done = start.run(
        own.command(flask(*command, app=APP)), None, **PATH, NOW_LMS_SIZING_PROFILE=str(file)
    )
    assert done.status == 0, done.stdout + done.stderr
    profile = SizingProfile.load(file)
    off = {}
    for name, shape in SHAPES:
        args = [text for option, count in shape.items() for text in (f"--{option}", str(count))]
        served = start(own.command(serve_prod(*args, server=name, app=APP)), None, **PATH)
        with ThreadPoolExecutor(8) as clients:
            assert {a.status for a in clients.map(served.get, ["/both"] * 100)} == {200}
        time.sleep(0.2)
        needed_mb = group.needed_mb
        served.stop()
        off[name, *shape.values()] = (planned_mb(profile, name, shape), round(needed_mb, 1))
    assert all(abs(told / held - 1) <= WITHIN for told, held in off.values()), off
