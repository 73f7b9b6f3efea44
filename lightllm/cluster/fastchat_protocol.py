"""FastChat's worker protocol: the parameters that each route takes, and the codes that its errors have.

Clients' values are checked against these tables before anything is done with them, by the workers and by the controller, since
FastChat's own workers break a stream off at a value of the wrong type. Names are FastChat's (0.2.36), as published.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from lightllm.errors import InvalidParameter, RequestError

Int = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]


class Code(enum.IntEnum):
    """`error_code` of an answer; 0 in one that is no error."""

    WRONG_TYPE = 40001
    INVALID_MODEL = 40301
    OUT_OF_RANGE = 40302
    CONTEXT_OVERFLOW = 40303
    RATE_LIMIT = 42901
    QUOTA_EXCEEDED = 42902
    OVERLOADED = 42903
    INTERNAL = 50001
    OUT_OF_MEMORY = 50002
    NO_WORKER = 50005
    WORKER_TIMEOUT = 50006


_STATUSES = {
    Code.WRONG_TYPE: 400, Code.OUT_OF_RANGE: 400, Code.CONTEXT_OVERFLOW: 400, Code.INVALID_MODEL: 404, Code.RATE_LIMIT: 429,
    Code.QUOTA_EXCEEDED: 429, Code.OVERLOADED: 429, Code.OUT_OF_MEMORY: 503, Code.NO_WORKER: 503, Code.WORKER_TIMEOUT: 504,
}  # fmt: skip
_CODES = {
    400: Code.WRONG_TYPE, 404: Code.INVALID_MODEL, 413: Code.OUT_OF_RANGE, 422: Code.WRONG_TYPE, 429: Code.OVERLOADED,
    502: Code.NO_WORKER, 503: Code.NO_WORKER,
}  # fmt: skip


class WorkerError(RequestError):
    """A worker's failure, by FastChat's code."""

    def __init__(self, message: str, error_code: int = Code.INTERNAL) -> None:
        super().__init__(message)
        self.error_code = int(error_code)
        self.status = status_of(error_code)


def status_of(error_code: int) -> int:
    """The HTTP status that says the same."""
    return _STATUSES.get(error_code, 500)  # type: ignore[call-overload, no-any-return]


def error_chunk(error: RequestError) -> dict[str, Any]:
    """What FastChat's clients look at: `text` and `error_code`."""
    code = error.error_code if isinstance(error, WorkerError) else _CODES.get(error.status, Code.INTERNAL)
    return {"text": error.message, "error_code": int(code)}


class Named(msgspec.Struct):
    model: str | None = None


class Generation(Named):
    """Ranges are those of the server behind a worker."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    """Beside the prompt, for APIs that take chats alone."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: Int | None = None
    max_tokens: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    echo: bool | None = None
    logprobs: bool | Int | None = None
    best_of: Int | None = None
    use_beam_search: bool | None = None
    images: list[str] | None = None


class Embedding(Named):
    input: str | list[Any] | None = None
    encoding_format: str | None = None


class Counting(Named):
    prompt: str | None = None


PARAMETERS: Mapping[str, type[Named]] = {
    "/worker_generate_stream": Generation,
    "/worker_generate": Generation,
    "/worker_get_embeddings": Embedding,
    "/count_token": Counting,
    "/worker_get_conv_template": Named,
    "/model_details": Named,
}
"""By path. What is not in a table goes through as it is."""
_PLACE = re.compile(r"(.*) - at `\$\.(\w+)(.*)`")


def checked(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request: numbers may come as texts, null is as good as nothing. Raises `InvalidParameter`."""
    table = PARAMETERS[path]
    try:
        read = msgspec.convert(values, table, strict=False)
    except msgspec.ValidationError as error:
        found = _PLACE.fullmatch(str(error))
        reason, name, place = found.groups() if found else (str(error), None, "")
        shown = f"{name}{place}: " if name else ""
        raise InvalidParameter(shown + reason.replace("`", "").replace(" | null", ""), param=name) from error
    known = {name: getattr(read, name) for name in table.__struct_fields__}
    others = {name: value for name, value in values.items() if name not in known}
    return others | {name: value for name, value in known.items() if value is not None}
