"""Where a report is, and the token that opens it."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from ...errors import WorkerSizeConfigError
from ...sizing.settings import DEFAULT_HEALTH_URL
from .values import plain


@dataclass(frozen=True)
class Target:
    """Where a report is.

    :param url: how it is shown
    :param host: host, or the path of a unix socket if ``scheme`` is "unix"
    :param path: path of the report, quoted
    """

    url: str
    scheme: str
    host: str
    port: int | None
    path: str

    @classmethod
    def of(cls, url: str, path: str = DEFAULT_HEALTH_URL) -> Target:
        """Read an address, as a person types it.

        :param url: ``http://HOST:PORT``, ``https://HOST`` or ``unix:PATH``; without a scheme it is
            http; a path of its own wins
        :param path: the path otherwise
        :raises WorkerSizeConfigError: if it is not one
        """
        if url.startswith("unix:") and url.isprintable() and hasattr(socket, "AF_UNIX"):
            return cls(url, "unix", url[5:], None, quote(path))
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
            is_plain = parts.username is None and not parts.fragment and url.isprintable()
        except ValueError:
            host, port, is_plain = None, None, False
        if not host or not is_plain or " " in url or parts.scheme not in ("http", "https"):
            raise WorkerSizeConfigError(
                f"{plain(url)} is not an address to ask: name one such as http://host:8081 or "
                "unix:/run/lms.sock, without a user or a password."
            )
        own = parts.path + (f"?{parts.query}" if parts.query else "")
        own = quote(own, safe="/?&=%:@!$'()*+,;~-._") if own not in ("", "/") else quote(path)
        return cls(url, parts.scheme, host, port, own)


def checked_token(token: str | None) -> str | None:
    """Return a token that a header can hold.

    :raises WorkerSizeConfigError: if it cannot be sent
    """
    token = (token or "").strip() or None
    if token is not None and re.search(r"[\x00-\x1f\x7f]", token):
        raise WorkerSizeConfigError(
            "NOW_LMS_HEALTH_TOKEN holds a line break or a control character, which no header can: "
            "set the token that the server has."
        )
    return token
