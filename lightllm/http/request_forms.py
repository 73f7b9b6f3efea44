"""Two forms of a request that mean the same as the plain one."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RequestForms:
    """ASGI middleware, outside of everything that looks at the path or the method: two forms of a request mean the same as the
    plain one. A path with a slash at its end, as FastAPI's servers take it (by a redirect, which would depend on the Host header
    and which clients need not follow), and HEAD, which every route that has GET answers (RFC 9110, 9.3.2); the connection leaves
    out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.endswith("/") and path != "/":
                scope = {**scope, "path": path[:-1]}
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
