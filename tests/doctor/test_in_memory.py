"""Rate limits and caches in the memory of a worker, with the real extensions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask_caching import Cache
from flask_caching.backends.simplecache import SimpleCache
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from limits.storage import Storage

from flask_workersize.doctor import examine
from flask_workersize.doctor.in_memory import caches, rate_limits
from tests.doctor.cases import case, levels, sized
from tests.plain import plan


class SharedStorage(Storage):
    """A storage that is not the memory of a process."""

    STORAGE_SCHEME = ["doctor-shared"]  # noqa: RUF012 - as the storages of limits have it

    @property
    def base_exceptions(self) -> type[Exception]:
        return ConnectionError

    def incr(self, *_: Any, **__: Any) -> int:
        return 1

    def get(self, key: str) -> int:
        return 0

    def get_expiry(self, key: str) -> float:
        return 0

    def check(self) -> bool:
        return True

    def reset(self) -> None:
        return None

    def clear(self, key: str) -> None:
        return None


def limited(storage_uri: str | None = "memory://", **config: Any) -> Flask:
    app = sized(**config)
    Limiter(get_remote_address, app=app, storage_uri=storage_uri)
    return app


def test_rate_limit_in_memory_breaks() -> None:
    (finding,) = rate_limits(case(limited()))
    assert finding.level == "breaks"
    assert "with 4 workers a limit allows up to 4 times as many requests" in finding.what
    assert "RATELIMIT_STORAGE_URI" in finding.remedy
    assert levels(rate_limits, case(limited(), preload=False)) == ["breaks"]


def test_rate_limit_in_memory_is_the_default() -> None:
    with pytest.warns(UserWarning, match="in-memory storage"):
        app = limited(None)
    assert levels(rate_limits, case(app)) == ["breaks"]


def test_rate_limit_in_memory_by_config() -> None:
    assert levels(rate_limits, case(limited(None, RATELIMIT_STORAGE_URI="memory://"))) == ["breaks"]


def test_two_limiters_in_memory_are_one_finding() -> None:
    app = limited()
    Limiter(get_remote_address, app=app, storage_uri="memory://", key_prefix="other")
    assert levels(rate_limits, case(app)) == ["breaks"]


@pytest.mark.parametrize(
    "app",
    [
        lambda: limited(RATELIMIT_ENABLED=False),
        lambda: limited("doctor-shared://"),
        sized,
    ],
    ids=["disabled", "shared", "none"],
)
def test_rate_limit_elsewhere_is_no_finding(app: Any) -> None:
    assert levels(rate_limits, case(app())) == []


def test_limiter_that_is_disabled_later_is_no_finding() -> None:
    app = sized()
    limiter = Limiter(get_remote_address, app=app, storage_uri="memory://")
    limiter.enabled = False
    assert levels(rate_limits, case(app)) == []


def test_limiter_that_is_registered_alone_as_by_old_versions_is_found() -> None:
    app = limited()
    (limiter,) = app.extensions["limiter"]
    app.extensions["limiter"] = limiter
    assert levels(rate_limits, case(app)) == ["breaks"]


class OwnCache(SimpleCache):
    """A cache of the app's own."""

    @classmethod
    def factory(cls, app: Flask, config: Any, args: Any, kwargs: Any) -> OwnCache:
        return cls()


def cached(kind: str, **config: Any) -> Flask:
    app = sized(CACHE_TYPE=kind, CACHE_NO_NULL_WARNING=True, **config)
    Cache(app)
    return app


@pytest.mark.parametrize(
    "kind", ["SimpleCache", "flask_caching.backends.SimpleCache", f"{__name__}.OwnCache"]
)
def test_simple_cache_breaks_also_one_that_is_derived(kind: str) -> None:
    (finding,) = caches(case(cached(kind)))
    assert finding.level == "breaks"
    assert "CACHE_TYPE" in finding.remedy
    assert levels(caches, case(cached(kind), preload=False)) == ["breaks"]


def test_other_caches_are_no_finding(tmp_path: Any) -> None:
    assert levels(caches, case(cached("NullCache"))) == []
    assert levels(caches, case(cached("FileSystemCache", CACHE_DIR=str(tmp_path)))) == []
    assert levels(caches, case(sized())) == []


def test_extension_that_looks_different_is_a_note_and_not_a_traceback() -> None:
    app = sized()
    app.extensions["limiter"] = SimpleNamespace(enabled=True)
    app.extensions["cache"] = object()
    found = [str(each) for each in examine(app, plan()) if each.level == "unseen"]
    assert found == [
        "Flask-Limiter: this check failed (AttributeError). Check it yourself.",
        "Flask-Caching: this check failed (AttributeError). Check it yourself.",
    ]
