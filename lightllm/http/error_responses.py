"""How errors reach the client: OpenAI's envelope under /v1, but Anthropic's at its routes there, Ollama's under /api,
TGI's at /, both of LightLLM's elsewhere; never an exception's own text."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
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


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def is_ollama(path: str) -> bool:
    return path.startswith("/api/")


def ollama_body(error: RequestError) -> dict[str, Any]:
    return {"error": error.message}


_ANTHROPIC_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
"""HTTP status -> Anthropic's `error.type`; besides `invalid_request_error` and, from 500 on, `api_error`."""


def anthropic_body(error: RequestError, status: int) -> dict[str, Any]:
    kind = _ANTHROPIC_KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def openai_body(error: RequestError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


_NATIVE_KINDS = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
}
"""HTTP status -> LightLLM's `error.type`; besides `BadRequestError` and, from 500 on, `InternalServerError`."""


def native_body(error: RequestError, status: int) -> dict[str, Any]:
    """LightLLM's shape, and beside it the envelope that it has since 1.2."""
    kind = _NATIVE_KINDS.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    envelope = {"message": error.message, "type": kind, "param": error.param, "code": status}
    own = {"message": error.message} | ({"param": error.param} if error.param else {})
    return {**own, "error": envelope}


def tgi_body(error: RequestError) -> dict[str, Any]:
    """That of text-generation-inference."""
    kind = "validation" if error.status < 500 else "generation"
    if isinstance(error, ServerOverloaded):
        kind = "overloaded"
    return {"error": error.message, "error_type": kind}


def error_body(path: str, error: RequestError, status: int | None = None) -> bytes:
    """JSON in the shape of the path's API. status: that of the response, if it is not the error's own."""
    if is_anthropic(path):
        return msgspec.json.encode(anthropic_body(error, status or error.status))
    if is_openai(path):
        return msgspec.json.encode(openai_body(error))
    if is_ollama(path):
        return msgspec.json.encode(ollama_body(error))
    if path == "/":
        return msgspec.json.encode(tgi_body(error))
    return msgspec.json.encode(native_body(error, status or error.status))


def error_response(path: str, error: RequestError, overload_status: int = 503) -> Response:
    """The answer to a request that failed before its first byte, in the shape of its API. overload_status: of what is refused for
    load; a server that loads or stops says 503 whatever it is."""
    # OpenAI and vLLM call a malformed body a bad request, and their clients' exceptions follow the status.
    status = (
        400 if (is_openai(path) or is_ollama(path)) and isinstance(error, MalformedBody) else error.status
    )
    if type(error) is ServerOverloaded:
        status = overload_status
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, RequestTimeout):
        headers["x-should-retry"] = "false"  # OpenAI's client would generate it all once more
    return Response(error_body(path, error, status), status, headers, "application/json")


def from_http_exception(error: HTTPException) -> RequestError:
    """What the web framework itself refuses: unknown routes and methods."""
    if error.status_code == 404:
        return NotFound("there is no such route: /openapi.json and /docs list those that there are")
    if error.status_code == 405:
        return MethodNotAllowed("this route does not take that method")
    refused = RequestError("the request cannot be served")
    refused.status = error.status_code
    return refused


async def http_exception_response(request: Request, error: Exception) -> Response:
    """The handler of such refusals, in the shape of the path's API."""
    assert isinstance(error, HTTPException)
    response = error_response(request.scope["path"], from_http_exception(error))
    response.headers.update(error.headers or {})  # Allow, for 405
    return response
