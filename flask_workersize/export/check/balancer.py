"""Files of HAProxy and nginx, read as far as a line can be judged by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .value import Place, Value, whole


@dataclass(frozen=True)
class Balancer:
    """What a balancer does with the servers behind it.

    :param limits: how many requests it sends to one at once, with the name of the group
    :param checks: checks that go to the port of the app
    :param repeats: lines that repeat an answer with status 503
    """

    place: Place
    limits: list[tuple[str, Value]] = field(default_factory=list)
    checks: list[Place] = field(default_factory=list)
    repeats: list[Place] = field(default_factory=list)


_SECTION = re.compile(
    r"(global|defaults|frontend|backend|listen|resolvers|peers|userlist)\b\s*(\S*)"
)


def haproxy(file: str, text: str) -> Balancer:
    """Read a file of HAProxy."""
    found = Balancer(Place(file, 1))
    defaults: list[list[str]] = []
    for kind, name, lines in _sections(text):
        words = [line for _, line in lines]
        if kind == "defaults":
            defaults = words
        inherited = [*defaults, *words]
        if [line[1:2] for line in inherited if line[0] == "mode"][-1:] == [["tcp"]]:
            continue
        shared = ("default-server", "http-check", "tcp-check")
        given = {word for line in inherited if line[0] in shared for word in line}
        for number, line in lines:
            place = Place(file, number)
            if line[0] in ("server", "default-server", "server-template"):
                limit = _after(line, "maxconn")
                if limit is not None and whole(limit) is not None:
                    found.limits.append((name, Value(limit, place)))
                asked = given | set(line)
                if line[0] != "default-server" and "check" in asked and "port" not in asked:
                    found.checks.append(place)
            if line[0] == "retry-on" and {"503", "all-retryable-errors"} & set(line):
                found.repeats.append(place)
    return found


def _sections(text: str) -> Iterator[tuple[str, str, Sequence[tuple[int, list[str]]]]]:
    """Yield the kind, the name and the lines of each section, in words."""
    kind, name, lines = "", "", list[tuple[int, list[str]]]()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words and (match := _SECTION.match(line)):
            yield kind, name, lines
            kind, name, lines = match[1], match[2], []
        elif words:
            lines.append((number, words))
    yield kind, name, lines


def _after(words: Sequence[str], key: str) -> str | None:
    return next((text for word, text in pairwise(words) if word == key), None)


def nginx(file: str, text: str) -> Balancer:
    """Read a file of nginx."""
    found = Balancer(Place(file, 1))
    group = ""
    for number, line in enumerate(text.splitlines(), 1):
        for statement in re.split(r"[;{}]", line.partition("#")[0]):
            match statement.split():
                case ["upstream", name]:
                    group = name
                case ["server", *rest]:
                    for word in rest:
                        limit = word.partition("=")[2]
                        if word.startswith("max_conns=") and whole(limit) is not None:
                            found.limits.append((group, Value(limit, Place(file, number))))
                case ["proxy_next_upstream", *rest] if "http_503" in rest:
                    found.repeats.append(Place(file, number))
    return found
