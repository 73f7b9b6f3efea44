"""What keeps pages in somebody's browser away from a server without keys, which trusts whatever reaches it.

A page of any site can have the browser send requests to an address that only this machine, or its network, reaches: simple
ones at once, all others after a preflight, which fails (there is no CORS without --allowed_origins). By a name of its own
that resolves to 127.0.0.1 (DNS rebinding) it could read the answers as well. So, where no key is set:

Origin        of another site: refused. Browsers send it with every POST, and pages cannot change it.
Content-Type  of the kinds that browsers send without a preflight: refused. None is fine: browsers never send none.
Host          on a loopback address only: a name that others can own is refused. Elsewhere the names are not known.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm.errors import Forbidden, MethodNotAllowed, RequestError, UnsupportedMediaType
from lightllm.http.auth import OPEN_PATHS
from lightllm.http.error_responses import error_response

_SIMPLE_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""What a page may send to another site without asking (WHATWG Fetch, CORS-safelisted request header)."""
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
"""Names that nobody can register (RFC 6761, RFC 6762, RFC 8375, ICANN resolution 2024.07.29.06)."""
_MAX_SHOWN = 100


class Surroundings(Protocol):
    """The options that say whom a server trusts."""

    @property
    def host(self) -> str: ...
    @property
    def api_key(self) -> Sequence[str] | None: ...
    @property
    def api_key_file(self) -> str | None: ...
    @property
    def allowed_hosts(self) -> Sequence[str] | None: ...
    @property
    def allowed_origins(self) -> Sequence[str] | None: ...


class BrowserGuard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, config: Surroundings) -> None:
        self._app = app
        self._guards = not config.api_key and not config.api_key_file
        self._check_host = is_loopback(config.host)
        self._hosts = tuple(host.lower() for host in config.allowed_hosts or ())
        self._origins = tuple(config.allowed_origins or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            error = _preflight(scope, headers) or (self._refusal(headers) if self._guards else None)
        if error is not None:
            await error_response(scope["path"], error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> RequestError | None:
        if self._check_host:
            for host in headers.getlist("host"):
                if not self._knows(host):
                    return Forbidden(
                        f"the host {_shown(host)} is not one of this server's: start it with --allowed_hosts, or with "
                        "--api_key, or use its address"
                    )
        for origin in headers.getlist("origin"):
            if self._is_foreign(origin, headers):
                return Forbidden(
                    f"pages of {_shown(origin)} may not use this server: start it with --allowed_origins, or with --api_key"
                )
        for value in headers.getlist("content-type"):
            if value.partition(";")[0].strip().lower() in _SIMPLE_TYPES:
                return UnsupportedMediaType(
                    f"the body has the type {_shown(value)}: send the header `Content-Type: application/json`"
                )
        return None

    def _knows(self, host: str) -> bool:
        name = _name_of(host)
        # A name without a dot is this machine's or its network's: nobody can register one.
        if "." not in name or name.endswith(_PRIVATE_SUFFIXES) or _address(name) is not None:
            return True
        return any(_matches(name, pattern) for pattern in self._hosts)

    def _is_foreign(self, origin: str, headers: Headers) -> bool:
        if "*" in self._origins or origin in self._origins:
            return False
        if headers.get("sec-fetch-site") == "same-origin":
            return False  # through a proxy that changes the Host; pages cannot set this header
        try:
            parts = urlsplit(origin)
            name = (parts.hostname or "").lower()
        except ValueError:
            return True
        if parts.scheme not in ("http", "https"):
            return origin == "null"  # applications and extensions, no pages
        return not (is_loopback(name) or any(name == _name_of(host) for host in headers.getlist("host")))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches this address or name."""
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") if address is None else address.is_loopback


def _preflight(scope: Scope, headers: Headers) -> RequestError | None:
    """Those of allowed origins do not come here."""
    if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
        return MethodNotAllowed(
            f"pages of {_shown(headers.get('origin', ''))} may not use this server: start it with --allowed_origins"
        )
    return None


def _name_of(host: str) -> str:
    """The Host header without its port, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    return name.lower().removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _matches(name: str, pattern: str) -> bool:
    """A pattern is a name, `*.NAME` for all names under it, or `*`."""
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def _shown(value: str) -> str:
    return repr(value[:_MAX_SHOWN])
