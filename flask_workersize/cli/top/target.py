"""Addresses of reports, and the token for the details."""

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
    """The address of a report.

    :param url: as typed
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
        """Parse an address as typed.

        :param url: ``http://HOST:PORT``, ``https://HOST`` or ``unix:PATH``; without a
            scheme, http
        :param path: used if the URL has none
        :raises WorkerSizeConfigError: if it is not valid
        """
        kind = _unix if url.startswith("unix:") else _http
        target = kind(url, quote(path)) if url.isprintable() and " " not in url else None
        if target is None:
            # The part before the host may be a password.
            shown = plain(url.rpartition("@")[2])
            raise WorkerSizeConfigError(
                f"{shown} is not a valid URL: use one such as http://host:8081 or "
                "unix:/run/lms.sock, without a user or a password."
            )
        return target


def _unix(url: str, path: str) -> Target | None:
    place = url.removeprefix("unix:")
    return Target(url, "unix", place, None, path) if place and hasattr(socket, "AF_UNIX") else None


def _http(url: str, path: str) -> Target | None:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    is_known = parts.scheme in ("http", "https") and parts.username is None and not parts.fragment
    if not host or not is_known:
        return None
    if parts.path not in ("", "/"):
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    if parts.query:
        path += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    return Target(url, parts.scheme, host, port, path)


def checked_token(token: str | None) -> str | None:
    """Return the token, checked for use in a header.

    :raises WorkerSizeConfigError: if it cannot be sent
    """
    token = (token or "").strip() or None
    if token is not None and re.search(r"[\x00-\x1f\x7f]", token):
        raise WorkerSizeConfigError(
            "NOW_LMS_HEALTH_TOKEN contains a line break or a control character, so no header can "
            "hold it: set the server's token."
        )
    return token
