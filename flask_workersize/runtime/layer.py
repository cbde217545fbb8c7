"""What our WSGI middleware has in common: it does not hide what it wraps."""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIApplication


class Layer:
    """WSGI middleware; all that is not its own is read from, and written to, the app below.

    So code of the app finds the attributes of its own middleware at ``app.wsgi_app``, as if nothing
    of ours stood in between. A subclass names what is its own in ``__slots__``.

    :param app: the app below
    """

    __slots__ = ("__weakref__", "app")

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        if name == "app":
            # A copy is made without calling __init__.
            raise AttributeError(name)
        return getattr(self.app, name)

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except AttributeError:
            setattr(self.app, name, value)
