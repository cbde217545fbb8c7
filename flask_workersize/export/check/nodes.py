"""YAML as a tree that knows the line of each key: composed, never constructed.

PyYAML is an extra, and imported when a file is YAML. An alias is the node that it names, so that
nothing grows; what is read of a document is bounded, however often it names itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import WorkerSizeConfigError
from .value import Place, Value

_MOST_STEPS = 2_000_000
_TAG = "tag:yaml.org,2002:"


class Node:
    """A part of a document; what is not there is an empty one, at the line of what would hold it.

    :param raw: the node of PyYAML, or ``None``
    :param place: the line of its key
    :param steps: counts down what may still be read
    """

    __slots__ = ("_raw", "_steps", "place")

    def __init__(self, raw: Any, place: Place, steps: Iterator[int]) -> None:
        self._raw: Any = None if raw is None or raw.tag == f"{_TAG}null" else raw
        self._steps = steps
        self.place = place
        # A value that begins with two braces is YAML by accident: a mapping in the place of a key.
        if self.is_a("mapping") and any(key.id == "mapping" for key, _ in raw.value[:1]):
            raise _no_yaml(place.file, place.line)

    def __bool__(self) -> bool:
        return self._raw is not None

    def __getitem__(self, path: str) -> Node:
        """Return what is at a path of keys, such as ``spec.template``."""
        node = self
        for key in path.split("."):
            node = next(
                (value for name, value in node.items() if name == key),
                Node(None, node.place, self._steps),
            )
        return node

    def __iter__(self) -> Iterator[Node]:
        """Yield the items of a list, each once."""
        seen = set()
        for raw in self._raw.value if self.is_a("sequence") else ():
            self._count()
            if id(raw) not in seen:
                seen.add(id(raw))
                yield Node(raw, self._place_of(raw), self._steps)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield the keys and values of a mapping; what ``<<`` merges comes last."""
        maps = [self._raw] if self.is_a("mapping") else []
        seen, names = set(), set()
        for raw in maps:
            self._count()
            if id(raw) in seen:
                continue
            seen.add(id(raw))
            if raw.id == "sequence":
                maps += raw.value
            for key, value in raw.value if raw.id == "mapping" else ():
                self._count()
                if key.tag == f"{_TAG}merge":
                    maps.append(value)
                elif key.id == "scalar" and key.value not in names:
                    names.add(key.value)
                    yield key.value, Node(value, self._place_of(key), self._steps)

    def repeated_keys(self) -> Iterator[Value]:
        """Yield each key that its mapping has before, here and below."""
        rest, seen = [self._raw], set[int]()
        while rest:
            raw = rest.pop()
            if raw is None or raw.id == "scalar" or id(raw) in seen:
                continue
            seen.add(id(raw))
            names = set[str]()
            for part in raw.value:
                key, value = part if raw.id == "mapping" else (None, part)
                rest.append(value)
                if key is not None and key.id == "scalar":
                    if key.value in names and key.tag != f"{_TAG}merge":
                        yield Value(key.value, self._place_of(key))
                    names.add(key.value)

    def is_a(self, kind: str) -> bool:
        """Return whether it is a "mapping", a "sequence" or a "scalar"."""
        return self._raw is not None and self._raw.id == kind

    @property
    def text(self) -> str:
        """Its text; empty if it has none."""
        return str(self._raw.value) if self.is_a("scalar") else ""

    @property
    def value(self) -> Value | None:
        """Its text and line; ``None`` if it is not there."""
        return Value(self.text, self.place) if self.is_a("scalar") else None

    @property
    def words(self) -> list[str]:
        """Its text, or those of its items."""
        return [self.text] if self.is_a("scalar") else [item.text for item in self]

    def _place_of(self, raw: Any) -> Place:
        return Place(self.place.file, raw.start_mark.line + 1)

    def _count(self) -> None:
        if next(self._steps, None) is None:
            raise WorkerSizeConfigError(
                f"{self.place.file} repeats itself too often (anchors and aliases). Check it in "
                "parts."
            )


def _no_yaml(file: str, line: int) -> WorkerSizeConfigError:
    return WorkerSizeConfigError(
        f"{file} is not valid YAML in line {line}. A template of a chart has to be rendered first: "
        "helm template . | flask workersize check -"
    )


def documents(file: str, text: str) -> list[Node]:
    """Return the documents of a file.

    :raises WorkerSizeConfigError: if it is no YAML, or PyYAML is missing
    """
    try:
        import yaml
    except ImportError:
        raise WorkerSizeConfigError(
            f"{file} is YAML, and PyYAML is missing: pip install 'flask-workersize[check]'."
        ) from None
    try:
        raws = list(yaml.compose_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise _no_yaml(file, mark.line + 1 if mark else 1) from None
    steps = iter(range(_MOST_STEPS))
    return [Node(raw, Place(file, 1), steps) for raw in raws if raw is not None]
