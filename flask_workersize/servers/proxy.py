"""One meaning of ``NOW_LMS_TRUSTED_PROXY`` for both servers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from types import FunctionType, MethodType
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from ..log import say
from ..runtime.layer import Layer
from ..sizing.settings import SizingSettings
from ..sizing.sources import GUNICORN_ARGS

_TAKEN = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO")
_DROPPED = (
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PREFIX",
    "HTTP_X_FORWARDED_BY",
    "HTTP_X_FORWARDED_PROTOCOL",
    "HTTP_X_FORWARDED_SSL",
    "HTTP_FORWARDED",
)
TRUSTING_NOBODY = {
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "secure_scheme_headers": {},
}
"""Settings of gunicorn that leave all these headers to our middleware; gunicorn itself trusts
every peer on a unix socket."""


def trusting(app: WSGIApplication, settings: SizingSettings) -> WSGIApplication:
    """Return the app behind :class:`TrustedProxy` if the operator named a proxy."""
    return TrustedProxy(app, settings.trusted_proxy) if settings.trusted_proxy else app


class Trust:
    """Checks whether a peer is a trusted proxy: an address or network of a list, or any with ``*``.

    A peer on a unix socket is trusted: the permissions of its folder decide who may connect.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self._is_for_all = "*" in trusted
        self._networks = [ip_network(item) for item in trusted if item != "*"]

    def __call__(self, peer: str) -> bool:
        """Return whether the peer with this address is trusted."""
        # gunicorn and waitress call the peer on a unix socket "" and "localhost".
        if self._is_for_all or peer in ("", "localhost"):
            return True
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


class TrustedProxy(Layer):
    """WSGI middleware that takes the client's address and scheme from a trusted proxy only.

    From a trusted peer the last value of ``X-Forwarded-For`` becomes the client's address and
    that of ``X-Forwarded-Proto`` the scheme (:class:`werkzeug.middleware.proxy_fix.ProxyFix`).
    From any other peer these headers are removed. Further headers that proxies often pass on
    unchecked are removed in any case.
    """

    __slots__ = ("_behind_proxy", "_trusts")

    def __init__(self, app: WSGIApplication, trusted: Iterable[str]) -> None:
        super().__init__(app)
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=0, x_port=0, x_prefix=0)
        self._trusts = Trust(trusted)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        trusted = self._trusts(environ.get("REMOTE_ADDR", ""))
        for header in _DROPPED if trusted else (*_TAKEN, *_DROPPED):
            environ.pop(header, None)
        app = self._behind_proxy if trusted else self.app
        return app(environ, start_response)


def note_kept_connections(settings: SizingSettings, seconds: float, option: str) -> None:
    """Log that idle connections close before most balancers expect it.

    :param seconds: how long one stays open; 0 if none is kept
    :param option: what sets that
    """
    if settings.trusted_proxy and 0 < seconds < _BALANCER_SECONDS:
        say(
            logging.INFO,
            f"Idle connections close after {seconds:g} s. If your proxy keeps them longer (most "
            f"balancers: 60 to 90 s), clients get status 502: raise {option} above that.",
        )


_BALANCER_SECONDS = 60
"""How long balancers that keep the shortest keep an idle connection (AWS, nginx)."""


def ignored_by_waitress(
    app: Flask, settings: SizingSettings, options: Mapping[str, Any], environ: Mapping[str, str]
) -> str | None:
    """Return one warning that names settings of the app or platform that only gunicorn reads.

    waitress removes a proxy's headers about the client, unless it knows the proxy.

    :param options: the adjustments that waitress gets
    :returns: ``None`` if there is nothing to warn of
    """
    believing, lines = [], []
    if not settings.trusted_proxy and not options.get("trusted_proxy"):
        clears = options["clear_untrusted_proxy_headers"]
        if clears and any(isinstance(layer, ProxyFix) for layer in _layers(app)):
            believing.append("ProxyFix in the app")
        if environ.get(_ALLOWED, "").strip():
            believing.append(_ALLOWED)
    if believing:
        lines.append(
            "waitress removes X-Forwarded-For, -Proto and -Host despite "
            f"{' and '.join(believing)}. Set NOW_LMS_TRUSTED_PROXY to the proxy's address, "
            "or NOW_LMS_WSGI_SERVER=gunicorn."
        )
    if environ.get(GUNICORN_ARGS, "").strip():
        lines.append(
            f"waitress ignores {GUNICORN_ARGS}. Set NOW_LMS_WSGI_SERVER=gunicorn, or unset it."
        )
    return " ".join(lines) or None


_ALLOWED = "FORWARDED_ALLOW_IPS"
_MOST_LAYERS = 100


def _layers(app: Flask) -> Iterator[object]:
    """Yield what stands at ``app.wsgi_app`` and whatever it calls, by any name it has there."""
    waiting: list[Any] = [app.wsgi_app]
    seen: list[object] = []
    while waiting and len(seen) < _MOST_LAYERS:
        layer = waiting.pop(0)
        # By identity: middleware may compare as it likes.
        if issubclass(type(layer), Flask | type) or any(layer is other for other in seen):
            continue
        seen.append(layer)
        yield layer
        waiting += filter(callable, _below(layer))


def _below(layer: Any) -> Iterator[object]:
    if isinstance(layer, MethodType):
        yield layer.__self__
    elif isinstance(layer, partial):
        yield from (layer.func, *layer.args)
    elif isinstance(layer, Layer):
        yield layer.app
    if isinstance(layer, FunctionType):
        for cell in layer.__closure__ or ():
            with suppress(ValueError):
                yield cell.cell_contents
    with suppress(AttributeError):
        # Not by getattr(), which runs code of the middleware.
        yield from object.__getattribute__(layer, "__dict__").values()
