"""API keys: default deny. With keys, every route but the health checks and the files of the page needs one; with admin keys, what operators do needs
one of those.

A key is presented as `Authorization: Bearer KEY`, as `x-api-key: KEY` (Anthropic's clients) or as `api-key: KEY` (Azure's).
No page in a browser can send any of them to another site unless CORS allows it. The decision to admit rests on
`scope["path"]`, the path that the router dispatches on, never on a URL built from the Host header; what a caller may do is
decided in the route itself (`caller(request).require_operator()`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm.errors import Forbidden, Unauthorized
from lightllm.http.error_responses import error_response
from lightllm.http.key_ring import KeyRing, digest_of

OPEN_PATHS = frozenset({"/health", "/healthz", "/liveness", "/readiness", "/ping"})
CALLER = "lightllm.caller"
"""Key of the `Caller` in the ASGI scope; absent on a server without keys."""
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who sent a request, as far as keys tell, and what that allows."""

    key: str | None
    """Whose requests it may abort: a digest of its key, "" for those without one. None: everybody's."""
    operator: bool
    """May flush the cache and take profiles."""

    @property
    def owner(self) -> str:
        """Whom a request of this caller belongs to."""
        return self.key or ""

    def require_operator(self) -> None:
        """Raises `Forbidden`."""
        if not self.operator:
            raise Forbidden("this route needs an admin key (--admin_api_key, or `admin` in --api_key_file)")


_ANYBODY = Caller(key=None, operator=True)


def caller(request: Request) -> Caller:
    """On a server without keys everything is allowed."""
    return request.scope.get(CALLER, _ANYBODY)


def known_caller(request: Request) -> Caller | None:
    """On a route that callers without a key reach, too: None for those."""
    return request.scope.get(CALLER, _ANYBODY)


class ApiKeys:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, keys: KeyRing, open_pages: Collection[str] = (), signed: Collection[str] = ()
    ) -> None:
        """open_pages: paths that a GET reaches without a key, since what is there holds nothing of the server's; signed: paths that
        check for themselves who may (`known_caller`)."""
        self._app = app
        self._signed = signed
        self._keys = keys
        self._open_pages = open_pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            found = self._caller(scope)
            if found is None and not self._is_open(scope):
                error = Unauthorized("a valid API key is needed: send `Authorization: Bearer KEY`")
                await error_response(scope["path"], error)(scope, receive, send)
                return
            scope[CALLER] = found
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS or scope["path"] in self._signed:
            return True
        return scope["method"] == "GET" and scope["path"] in self._open_pages

    def _caller(self, scope: Scope) -> Caller | None:
        """None: a key is needed, and none that is known was presented."""
        presented = [digest_of(key) for key in _presented(scope["headers"])]
        admin = [self._keys.opens_all(digest) for digest in presented]
        known = [self._keys.opens(digest) for digest in presented]
        if any(admin):
            return Caller(key=None, operator=True)
        if any(known):
            return Caller(key=presented[known.index(True)].hex(), operator=not self._keys.admin_needed)
        return None if self._keys.needed else Caller(key="", operator=False)


def _presented(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys in a request's headers; a header that comes twice counts as absent."""
    keys = []
    for header in _KEY_HEADERS:
        values = [value for name, value in headers if name == header]
        if len(values) != 1:
            continue
        key = values[0]
        if header == b"authorization":
            scheme, _, key = key.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
        keys.append(key.strip())
    return keys
