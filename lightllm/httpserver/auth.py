"""API keys: default deny. Every route but the health checks needs `Authorization: Bearer KEY`.

The decision rests on `scope["path"]`, the path that the router dispatches on, never on a URL built from the Host header.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm.errors import Unauthorized
from lightllm.httpserver.error_responses import error_response

OPEN_PATHS = frozenset({"/health", "/healthz", "/liveness", "/readiness"})


class ApiKeys:
    """ASGI middleware. Keys are kept as digests and each is compared in constant time."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._admits(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            error = Unauthorized("a valid API key is needed: send `Authorization: Bearer KEY`")
            await error_response(scope["path"], error)(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS:
            return True
        presented = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(presented) != 1:
            return False
        scheme, _, key = presented[0].partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
