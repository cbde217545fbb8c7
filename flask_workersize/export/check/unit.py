"""Units of systemd, read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from . import value
from .value import Place, Value, amount
from .workload import Facts, Keys, Workload, collect

_KEYS = Keys("MemoryMax=", 90, "Set TimeoutStopSec={}.", "PrivateTmp=yes")


def workloads(file: str, text: str, facts: Facts) -> Iterator[Workload]:
    """Yield the service of a unit, if there is one."""
    lines = _service(file, text)
    if not lines:
        return
    last = {name: values[-1] for name, values in lines.items() if values}
    starts = last.get("ExecStart")
    strict = last.get("ProtectSystem")
    own_tmp = [last.get(name) for name in ("PrivateTmp", "DynamicUser")]
    paths = " ".join(item.text for item in lines.get("ReadWritePaths", ()))
    yield Workload(
        keys=_KEYS,
        name=re.sub(r".*/|\.service$", "", file),
        place=starts.place if starts else next(iter(last.values())).place,
        facts=facts,
        command=re.sub(r"^[-@:+!]+", "", starts.text).split() if starts else (),
        variables=dict(_variables(lines.get("Environment", ()))),
        elsewhere=[v._replace(text=v.text.lstrip("-")) for v in lines.get("EnvironmentFile", ())],
        amounts=collect(
            memory_limit=amount(last.get("MemoryMax") or last.get("MemoryLimit"), value.systemd),
            MemoryHigh=amount(last.get("MemoryHigh"), value.systemd),
            CPU_limit=amount(last.get("CPUQuota"), value.percent),
            grace=amount(last.get("TimeoutStopSec") or last.get("TimeoutSec"), value.seconds),
        ),
        read_only=strict._replace(text="true") if strict and strict.text == "strict" else None,
        is_writable=any(item is not None and item.is_on for item in own_tmp) or "/tmp" in paths,
        lines=lines,
        is_part=starts is None,
    )


def _service(file: str, text: str) -> Mapping[str, Sequence[Value]]:
    """Return the lines of the section, by key; an empty one takes back those before it."""
    found: dict[str, list[Value]] = {}
    section, start, whole = "", 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith(("#", ";")):
            continue
        start = start if whole else number
        whole += stripped.removesuffix("\\")
        if stripped.endswith("\\"):
            continue
        key, equals, said = whole.partition("=")
        if whole.startswith("["):
            section = whole
        elif equals and section == "[Service]":
            values = found.setdefault(key.strip(), [])
            values.append(Value(said.strip(), Place(file, start)))
            if not said.strip():
                values.clear()
        whole = ""
    return {key: values for key, values in found.items() if values}


def _variables(lines: Sequence[Value]) -> Iterator[tuple[str, Value]]:
    for line in lines:
        words: list[str] = []
        with suppress(ValueError):
            words = shlex.split(line.text)
        for word in words:
            name, _, text = word.partition("=")
            is_known = "%" not in text.replace("%%", "")
            yield name, Value(text.replace("%%", "%"), line.place, is_known)
