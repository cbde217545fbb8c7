"""In a control group of the size that is exported, the server plans what the export says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resources.real_groups import RealGroup, group_or_skip
from tests.servers.serving import Starter, flask, serve_prod, starter

GUNICORN = {"NOW_LMS_WSGI_SERVER": "gunicorn"}


@pytest.fixture
def group() -> Iterator[RealGroup]:
    with group_or_skip() as group:
        yield group


@pytest.fixture
def start(tmp_path: Path, group: RealGroup) -> Iterator[Starter]:
    with starter(tmp_path) as start:
        yield start


@pytest.mark.parametrize(("memory_mb", "workers"), [(320, "2"), (525, "4")])
def test_plan_of_an_export_is_that_of_the_server(
    start: Starter, group: RealGroup, memory_mb: int, workers: str
) -> None:
    """What the loaded app holds is taken off: 525 MB hold 4 workers of 100 MB beside it, not 5."""
    size = ["--memory", f"{memory_mb}M", "--cpus", "4"]
    environ = {**GUNICORN, "NOW_LMS_WORKER_MEMORY_MB": "100"}
    exported = start.run(flask("workersize", "export", "kubernetes", *size), **environ).stdout
    group.limit_memory(memory_mb)
    served = start.run(group.command(serve_prod("--dry-run")), **environ).stdout
    counts = [re.search(r"gunicorn: (\d+) workers?", text) for text in (exported, served)]
    assert [match and match[1] for match in counts] == [workers, workers]
