"""Every error a user can meet, with its HTTP status.

A client sees `RequestError`s; the operator who launches a server sees `StartupError`s. Both say what is wrong,
which value and limit are concerned, and how to mend it. `assert` is for what cannot happen, never for input.
"""

from __future__ import annotations


class LightLLMError(Exception):
    """Base of all errors that are raised on purpose."""


class RequestError(LightLLMError):
    """A request that cannot be served.

    Attributes: `status` the HTTP status; `code` the machine-readable OpenAI `error.code`; `kind` the OpenAI
    `error.type`; `param` the name of the offending field, if one is to blame; `retry_after` seconds, for overload.
    """

    status = 400
    code: str | None = "invalid_value"
    kind = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidParameter(RequestError):
    """A value outside its range, or a combination that makes no sense."""


class PromptTooLong(RequestError):
    """The prompt, or prompt + max_new_tokens, exceeds what the server can ever hold."""

    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"


class Forbidden(RequestError):
    """Known or not, this caller may not do that."""

    status = 403
    code = "forbidden"
    kind = "permission_error"


class NotFound(RequestError):
    """No such route."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class UnknownModel(RequestError):
    status = 404
    code = "model_not_found"


class BodyTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class UnsupportedMediaType(RequestError):
    """A body of a type or an encoding that is not taken."""

    status = 415
    code = "unsupported_media_type"


class MalformedBody(RequestError):
    """Not JSON, not UTF-8, nested too deeply, or fields of the wrong type."""

    status = 422
    code = "malformed_body"


class MalformedRequest(RequestError):
    """Not HTTP, or HTTP that servers may understand in different ways."""

    code = "malformed_request"


class HeadersTooLarge(RequestError):
    """More headers, or more of what frames a body, than any client needs."""

    status = 431
    code = "headers_too_large"


class UnsupportedTransferCoding(RequestError):
    status = 501
    code = "unsupported_transfer_coding"


class BodyTooSlow(RequestError):
    """The client did not go on sending its body."""

    status = 408
    code = "body_too_slow"


class ServerOverloaded(RequestError):
    """The waiting list is full; the client may try again after `retry_after` seconds."""

    status = 503
    code = "server_overloaded"
    kind = "server_error"


class ServerStopping(ServerOverloaded):
    """The server drains: nothing new is accepted."""

    code = "server_stopping"


class InternalError(RequestError):
    """Something unexpected; the log holds the traceback under the error id in the message."""

    status = 500
    code = "internal_error"
    kind = "server_error"


class BackendFailed(RequestError):
    """The model backend could not finish an accepted request."""

    status = 500
    code = "backend_failed"
    kind = "server_error"


class RequestTimeout(RequestError):
    """The request took longer than `--request_timeout` or its own `timeout`."""

    status = 408
    code = "request_timeout"
    kind = "timeout_error"


REQUEST_ERRORS: dict[str, type[RequestError]] = {
    cls.__name__: cls
    for cls in (
        RequestError, InvalidParameter, PromptTooLong, Unauthorized, UnknownModel, BodyTooLarge, MalformedBody,
        ServerOverloaded, ServerStopping, BackendFailed, RequestTimeout,
    )
}  # fmt: skip
"""Errors by name: how a refusal crosses a process border (`protocol.messages.Refused.error`)."""


class StartupError(LightLLMError):
    """Ends the launch with one line: what is wrong and how to mend it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason} {remedy}".strip())
        self.reason = reason
        self.remedy = remedy


class InvalidOption(StartupError):
    """A command-line option, environment variable or YAML entry with a wrong value."""


class InvalidModel(StartupError):
    """The model folder or one of its files cannot be used."""


class DeviceError(StartupError):
    """The device is missing or too small."""
