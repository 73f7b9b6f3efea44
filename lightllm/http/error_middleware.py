"""The outermost layer: request ids in and out, connections that end while the server drains, and nothing unexpected gets
past it.

Whatever is raised below becomes an error in the shape of the API; what is not a `RequestError` is logged under an
error id, and the client gets that id with a fixed text.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightllm.errors import InternalError, RequestError
from lightllm.http.error_responses import error_response, is_anthropic

_log = logging.getLogger(__name__)
_VALID_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
REQUEST_ID = "lightllm.request_id"
"""Key of the request id in the ASGI scope."""
WRITE_PARTS = "lightllm.write_parts"
"""Key of `Exchange.write_parts` in the ASGI scope; absent under a test transport."""
ABORT_CONNECTION = "lightllm.abort_connection"
"""Key of the function in the ASGI scope that drops the connection at once; absent under a test transport."""


class ErrorMiddleware:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool], overload_status: int) -> None:
        """draining: whether connections end with their answers; overload_status: as `error_response`."""
        self._app = app
        self._overload_status = overload_status
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope[REQUEST_ID] = request_id
        names = (b"x-request-id", b"request-id") if is_anthropic(scope["path"]) else (b"x-request-id",)
        headers = [(name, request_id.encode()) for name in names]
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if not started:
                started = True
                message["headers"] = [*message.get("headers", ()), *headers]
                if self._draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return
        except RequestError as error:
            if not started:
                response = error_response(scope["path"], error, self._overload_status)
                await response(scope, receive, send_with_id)
        except Exception:
            error_id = secrets.token_hex(6)
            _log.exception("request %s to %s failed, error id %s", request_id, scope["path"], error_id)
            if not started:
                internal = InternalError(f"an internal error occurred (error id {error_id})")
                await error_response(scope["path"], internal)(scope, receive, send_with_id)
            elif ABORT_CONNECTION in scope:
                scope[ABORT_CONNECTION]()


def _request_id(scope: Scope) -> str:
    """The client's `X-Request-Id` if it is harmless, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _VALID_ID.fullmatch(given) else secrets.token_hex(16)
