"""What extensions keep in the memory of a worker: rate limits and caches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .finding import Case, Finding


def rate_limits(case: Case) -> Iterable[Finding]:
    """Find limits of Flask-Limiter that each worker counts for itself."""
    registered = case.app.extensions.get("limiter", ())
    # Before version 2 it was the limiter itself, since then a set of them.
    limiters = registered if isinstance(registered, set | list | tuple) else [registered]
    for limiter in limiters:
        if limiter.enabled and _is_a(limiter._storage, "MemoryStorage"):
            yield Finding(
                "breaks",
                f"Flask-Limiter counts in each worker's memory: with {case.workers} workers a "
                f"limit allows up to {case.workers} times as many requests.",
                "Set RATELIMIT_STORAGE_URI to a shared storage, such as Redis or Memcached.",
            )
            return


def caches(case: Case) -> Iterable[Finding]:
    """Find caches of Flask-Caching that each worker has for itself."""
    backends: dict[Any, Any] = case.app.extensions.get("cache", {})
    if any(_is_a(backend, "SimpleCache") for backend in backends.values()):
        yield Finding(
            "breaks",
            "Flask-Caching keeps a SimpleCache in each worker's memory: entries that one "
            "worker deletes or changes stay in the others.",
            "Set CACHE_TYPE to a shared cache, such as RedisCache or FileSystemCache.",
        )


def _is_a(thing: Any, name: str) -> bool:
    """Return whether a class of that name is among the classes of a thing.

    By name, because the class has moved between modules, and importing it would be a dependency.
    """
    return any(item.__name__ == name for item in type(thing).__mro__)
