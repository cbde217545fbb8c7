"""Fixtures for tests that need processes of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.children import Children


@pytest.fixture
def children() -> Iterator[Children]:
    """Fork processes, which are killed at the end."""
    with Children() as children:
        yield children
