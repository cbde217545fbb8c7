"""Intents for tests: one that is always the same, and any."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from flask_workersize import SizingSettings, WorkerSizeConfigError
from flask_workersize.export.intent import Intent, read_intent
from flask_workersize.sizing.plan import MB
from flask_workersize.sizing.profile import Estimate, SizingProfile
from tests.plain import load


def profile(cpu_ms: float = 5.0, wait_ms: float = 45.0, **changes: float) -> SizingProfile:
    """Return the profile of an app: 80 MB shared, 17 MB a worker, 5 ms + 45 ms, or others."""
    figures = {"cpu_ms": cpu_ms, "wait_ms": wait_ms, "shared_mb": 80.0, "peak_mb": 17.0}
    names = ("alone_mb", "boot_mb", "warm_mb", "thread_mb", "growth_mb")
    figures = dict.fromkeys(names, 1.0) | {"alone_mb": 70.0} | figures | changes
    estimates: dict[str, Any] = {name: Estimate.of([value]) for name, value in figures.items()}
    return SizingProfile(
        schema=1,
        app="shop",
        made_at=datetime(2026, 11, 26, tzinfo=UTC),
        made_by="measure",
        python="3.13.1",
        server="gunicorn 27.0.1",
        flask_workersize="0.1.0",
        preload=True,
        requests=450,
        grows=False,
        **estimates,
    )


def asked(measured: SizingProfile | None = None, **environ: str) -> SizingSettings:
    """Return settings for gunicorn, with a profile or without."""
    settings = load({"NOW_LMS_WSGI_SERVER": "gunicorn", **environ})
    return settings.measured_by(measured) if measured else settings


def intent(
    measured: SizingProfile | None = None, environ: dict[str, str] | None = None, **options: Any
) -> Intent:
    """Return an intent of options as they are typed; the loaded app holds 50 MB."""
    if measured is None:
        options.setdefault("memory", "712M")
    return read_intent(asked(measured, **(environ or {})), 50 * MB, **options)


FIXED = {
    "compose": intent(profile(), app="hello:create_app"),
    "kubernetes": intent(profile(), replicas="2..6", autoscale="keda", network_policy=True),
    "cloudrun": intent(cpus="0.5", replicas="1..10"),
    "systemd": intent(app="hello"),
    "dockerfile": intent(profile(), app="hello"),
    "haproxy": intent(environ={"NOW_LMS_THREADS": "2"}, memory="1G", cpus="2"),
    "nginx": intent(environ={"NOW_LMS_WSGI_SERVER": "waitress", "NOW_LMS_TIMEOUT": "60"}),
    "prometheus": intent(name="shop"),
    "grafana": intent(name="shop"),
}
"""What each golden file was made from."""


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """Draw any intent that is not refused."""
    environ = {"NOW_LMS_WSGI_SERVER": draw(st.sampled_from(["gunicorn", "waitress"]))}
    number = st.integers(1, 200).map(str)
    optional = {
        "NOW_LMS_SIZING": st.just("adaptive"),
        "NOW_LMS_THREADS": st.integers(1, 16).map(str),
        "NOW_LMS_WORKERS": number,
        "NOW_LMS_MIN_WORKERS": st.just("2"),
        "NOW_LMS_MAX_WORKERS": st.integers(2, 9).map(str),
        "NOW_LMS_GRACEFUL_TIMEOUT": number,
        "NOW_LMS_TIMEOUT": st.integers(0, 7200).map(str),
        "NOW_LMS_MEMORY_HEADROOM_PERCENT": st.integers(0, 60).map(str),
        "NOW_LMS_PRELOAD": st.sampled_from(["on", "off"]),
    }
    for variable, values in optional.items():
        if draw(st.booleans()):
            environ[variable] = draw(values)
    measured = None
    if draw(st.booleans()):
        size = st.floats(1, 400)
        figures = {name: draw(size) for name in ("shared_mb", "peak_mb", "thread_mb")}
        measured = profile(draw(st.floats(0, 500)), draw(st.floats(0, 5000)), **figures)
    low = draw(st.integers(1, 300))
    high = draw(st.none() | st.integers(low + 1, 400))
    options: dict[str, Any] = {
        "replicas": str(low) if high is None else f"{low}..{high}",
        "autoscale": None if high is None else draw(st.sampled_from(["cpu", "keda"])),
        "cpus": draw(st.none() | st.floats(0.01, 64).map(lambda number: f"{number:.3f}")),
        "drain": draw(st.integers(0, 600).map(str)),
        "pool": draw(st.none() | st.integers(1, 100)),
        "network_policy": draw(st.booleans()),
        "name": draw(st.from_regex(r"\A[a-z]([a-z0-9-]{0,48}[a-z0-9])?\Z")),
        "app": draw(st.none() | st.sampled_from(["hello", "/srv/run.py", "shop.web:create_app"])),
        "memory": draw(st.none() | st.integers(1, 200_000).map(lambda size: f"{size}M")),
    }
    try:
        settings = load(environ)
        settings = settings.measured_by(measured) if measured else settings
        return read_intent(settings, draw(st.integers(0, 300)) * MB, **options)
    except WorkerSizeConfigError:
        assume(False)
        raise
