"""Sizing profiles as plain values."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

from flask_workersize.sizing.profile import Estimate, SizingProfile


def figure(value: float) -> Estimate:
    """Return a figure without a spread."""
    return Estimate(value=value, low=value, high=value)


def numbers(value: float) -> dict[str, float]:
    """Return the same, as JSON has it."""
    return figure(value).model_dump()


def facts(**others: Any) -> dict[str, Any]:
    """Return what stands in a profile: 60 MB once, 30 MB a worker, as JSON has it."""
    return {
        "schema": 1,
        "app": "lms",
        "made_at": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "made_by": "measure",
        "python": platform.python_version(),
        "server": "gunicorn 27.0.1",
        "flask_workersize": "0.1.0",
        "preload": True,
        "requests": 400,
        "shared_mb": numbers(60.0),
        "boot_mb": numbers(5.0),
        "warm_mb": {"value": 20.0, "low": 19.0, "high": 21.0},
        "peak_mb": {"value": 30.0, "low": 25.0, "high": 30.0},
        "thread_mb": numbers(2.0),
        "growth_mb": {"value": 0.1, "low": -0.1, "high": 0.3},
        "grows": False,
        "cpu_ms": {"value": 5.0, "low": 4.0, "high": 6.0},
        "wait_ms": {"value": 45.0, "low": 44.0, "high": 46.0},
        **others,
    }


def profile(**others: Any) -> SizingProfile:
    """Return a profile."""
    return SizingProfile.model_validate(facts(**others))
