"""What all tests share: processes of their own, and which tests are slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import Children

ROOT = Path(__file__).parent

SLOW = [
    "servers",
    "doctor/test_doctor_command.py",
    "doctor/test_forked.py",
    "export/test_real_plan.py",
    "measure/test_measure_command.py",
    "resources/test_real_groups.py",
    "test_docker.py",
    "test_example_app.py",
]
"""Folders and modules whose tests start many processes: ``pytest -m slow`` runs them."""

QUICK = "servers/test_quick.py"
"""Each server, started, asked and stopped once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests by where they are."""
    slow = [ROOT / place for place in SLOW]
    for item in items:
        is_slow = any(item.path.is_relative_to(place) for place in slow)
        if is_slow and item.path != ROOT / QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def children() -> Iterator[Children]:
    """Fork processes, which are killed at the end."""
    with Children() as children:
        yield children
