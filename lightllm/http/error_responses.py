"""How errors reach the client: OpenAI's envelope under /v1, `{"message": ...}` elsewhere; never an exception's own text."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lightllm.errors import (
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    RequestError,
    RequestTimeout,
    ServerOverloaded,
    Unauthorized,
)


def is_openai(path: str) -> bool:
    return path.startswith("/v1/")


def openai_body(error: RequestError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_body(path: str, error: RequestError) -> bytes:
    """JSON in the shape of the path's API."""
    native = {"message": error.message} | ({"param": error.param} if error.param else {})
    return msgspec.json.encode(openai_body(error) if is_openai(path) else native)


def error_response(path: str, error: RequestError, overload_status: int = 503) -> Response:
    """The answer to a request that failed before its first byte, in the shape of its API. overload_status: of what is refused for
    load; a server that loads or stops says 503 whatever it is."""
    # OpenAI and vLLM call a malformed body a bad request, and their clients' exceptions follow the status.
    status = 400 if is_openai(path) and isinstance(error, MalformedBody) else error.status
    if type(error) is ServerOverloaded:
        status = overload_status
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, RequestTimeout):
        headers["x-should-retry"] = "false"  # OpenAI's client would generate it all once more
    return Response(error_body(path, error), status, headers, "application/json")


def from_http_exception(error: HTTPException) -> RequestError:
    """What the web framework itself refuses: unknown routes and methods."""
    if error.status_code == 404:
        return NotFound("there is no such route: /openapi.json and /docs list those that there are")
    if error.status_code == 405:
        return MethodNotAllowed("this route does not take that method")
    refused = RequestError("the request cannot be served")
    refused.status = error.status_code
    return refused
