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

    def __init_subclass__(cls, status: int = 0, code: str = "", kind: str = "") -> None:
        """What a class statement says beside its base are the attributes that differ from the base's."""
        cls.status, cls.code, cls.kind = status or cls.status, code or cls.code, kind or cls.kind

    def __init__(self, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidParameter(RequestError):
    """A value outside its range, or a combination that makes no sense."""


class InvalidImage(InvalidParameter, code="invalid_image"):
    """An image that cannot be had (malformed or forbidden source, failed download), or that is none; or their number."""


class PromptTooLong(RequestError, code="context_length_exceeded"):
    """The prompt, or prompt + max_new_tokens, exceeds what the server can ever hold."""

    counts: tuple[int, int, int] | None = None
    """Tokens of the prompt and of the output, and the limit of both together, where they are known."""


class Unauthorized(RequestError, status=401, code="invalid_api_key", kind="authentication_error"):
    """No API key, or none that opens this route."""


class Forbidden(RequestError, status=403, code="forbidden", kind="permission_error"):
    """Known or not, this caller may not do that."""


class NotFound(RequestError, status=404, code="not_found"):
    """No such route."""


class MethodNotAllowed(RequestError, status=405, code="method_not_allowed"):
    """The route does not take this method."""


class UnknownModel(RequestError, status=404, code="model_not_found"):
    """No such model."""


class UnknownResponse(RequestError, status=404, code="response_not_found"):
    """No such response of this caller is kept: it never was, or no longer."""


class PreviousResponseNotFound(RequestError, code="previous_response_not_found"):
    """The response that a request follows is not kept here: it never was, or no longer."""


class BodyTooLarge(RequestError, status=413, code="request_too_large"):
    """A body of more than `--max_body_mb`."""


class UnsupportedMediaType(RequestError, status=415, code="unsupported_media_type"):
    """A body of a type or an encoding that is not taken."""


class MalformedBody(RequestError, status=422, code="malformed_body"):
    """Not JSON, not UTF-8, nested too deeply, or fields of the wrong type."""


class MalformedRequest(RequestError, code="malformed_request"):
    """Not HTTP, or HTTP that servers may understand in different ways."""


class HeadersTooLarge(RequestError, status=431, code="headers_too_large"):
    """More headers, or more of what frames a body, than any client needs."""


class UnsupportedTransferCoding(RequestError, status=501, code="unsupported_transfer_coding"):
    """A Transfer-Encoding other than chunked."""


class BodyTooSlow(RequestError, status=408, code="body_too_slow"):
    """The client did not go on sending its body."""


class ServerOverloaded(RequestError, status=503, code="server_overloaded", kind="server_error"):
    """The waiting list is full; the client may try again after `retry_after` seconds."""


class ServerLoading(ServerOverloaded):
    """The model is not there yet, or not again."""


class ServerStopping(ServerOverloaded, code="server_stopping"):
    """The server drains: nothing new is accepted."""


class InternalError(RequestError, status=500, code="internal_error", kind="server_error"):
    """Something unexpected; the log holds the traceback under the error id in the message."""


class BackendFailed(RequestError, status=500, code="backend_failed", kind="server_error"):
    """The model backend could not finish an accepted request."""


class RequestTimeout(RequestError, status=408, code="request_timeout", kind="timeout_error"):
    """The request took longer than `--request_timeout` or its own `timeout`."""


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

    final = False
    """Nor is it of use to start a process again that ends with it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason} {remedy}".strip())
        self.reason = reason
        self.remedy = remedy


class InvalidOption(StartupError):
    """A command-line option, environment variable or YAML entry with a wrong value."""


class InvalidModel(StartupError):
    """The model folder or one of its files cannot be used."""


class DeviceError(StartupError):
    """The device is missing or too small, or has failed."""


class NodeLost(StartupError):
    """Another node of the server cannot take part, or has not come back."""

    final = True
