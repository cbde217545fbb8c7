"""Open the addresses that a server listens on, with one line for each way that this can fail."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import WorkerSizeStartError
from ..log import say

BACKLOG = 2048
"""Connections that wait in the kernel, gunicorn's default; waitress has 1024."""

_UNUSABLE_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_ADVICE = "choose another with --port, --host, --bind or NOW_LMS_BIND."


def open_listeners(
    addresses: Iterable[str], backlog: int = BACKLOG, advice: str = _ADVICE
) -> list[socket.socket]:
    """Listen on ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``, on all of them or on none."""
    opened: list[socket.socket] = []
    wanted = list(addresses)
    try:
        for address in wanted:
            if address.startswith("unix:"):
                _open_unix(opened, address.removeprefix("unix:"), backlog)
            else:
                _open_tcp(opened, address, backlog, is_alone=len(wanted) == 1)
    except (OSError, ValueError) as error:
        close_listeners(opened)
        raise WorkerSizeStartError(f"{_reason(address, error)} {advice}") from None
    return opened


def close_listeners(listeners: Iterable[socket.socket], remove: bool = True) -> None:
    """Close sockets, and remove the files of unix sockets if they are ours to remove."""
    for listener in listeners:
        if remove:
            remove_socket_file(listener)
        listener.close()


def remove_socket_file(listener: socket.socket) -> None:
    """Remove the file of a unix socket, so that no client can connect any more."""
    name = listener.getsockname() if listener.fileno() != -1 else None
    if isinstance(name, str) and name:
        Path(name).unlink(missing_ok=True)


def announce(what: str, urls: Sequence[str], note: str = "") -> None:
    """Log where a server listens, if it does."""
    if urls:
        say(logging.INFO, f"{what} on {', '.join(urls)}{note}")


def url_of(listener: socket.socket) -> str:
    """Return the address of a socket as a person would type it."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def address_of(parsed: tuple[str, int] | str | int) -> str | None:
    """Return what gunicorn has parsed as we write it; ``None`` for a descriptor."""
    if isinstance(parsed, tuple):
        host, port = parsed
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{parsed}" if isinstance(parsed, str) else None


def _open_tcp(opened: list[socket.socket], address: str, backlog: int, is_alone: bool) -> None:
    host, _, port = address.rpartition(":")
    infos = socket.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    before, failed = len(opened), None
    names = dict.fromkeys((family, name) for family, _, _, _, name in infos)
    # Alone, "::" stands for all addresses, as everywhere; beside others for IPv6.
    is_alone = is_alone and len(names) == 1 and socket.has_dualstack_ipv6()
    for family, name in names:
        is_dual = is_alone and family == socket.AF_INET6
        try:
            opened.append(
                socket.create_server(name, family=family, backlog=backlog, dualstack_ipv6=is_dual)
            )
        except OSError as error:
            # A name like "localhost" can stand for a family that this machine does not have.
            if error.errno not in _UNUSABLE_FAMILY:
                raise
            failed = error
    if failed is not None and len(opened) == before:
        raise failed


def _open_unix(opened: list[socket.socket], path: str, backlog: int) -> None:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.append(listener)
    listener.bind(path)
    # As gunicorn does: the folder's permissions limit access; a proxy runs as another user.
    os.chmod(path, 0o777)
    listener.listen(backlog)


def _remove_stale(path: str) -> None:
    """Remove the file of a unix socket without a listener."""
    if not os.path.exists(path):
        return
    if not Path(path).is_socket():
        raise FileExistsError(errno.EEXIST, "not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise OSError(errno.EADDRINUSE, "in use")
    os.unlink(path)


_REASONS = {
    errno.EADDRINUSE: "it is in use, perhaps by an earlier server; stop that, or",
    errno.EADDRNOTAVAIL: "this machine has no such address;",
    errno.EEXIST: "a file that is not a socket exists there;",
    errno.EACCES: "permission denied (ports below 1024 need root or CAP_NET_BIND_SERVICE, a unix "
    "socket needs a folder that this user may write to);",
}


def _reason(address: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        address, why = repr(address), "not a valid host name or path;"
    elif isinstance(error, socket.gaierror):
        why = "host name not found;"
    elif error.errno is None:
        why = f"{error};"
    else:
        why = _REASONS.get(error.errno, f"{os.strerror(error.errno)};")
    return f"Cannot listen on {address}: {why}"
