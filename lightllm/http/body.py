"""Request bodies: read with a limit, parsed by pydantic straight from the bytes, errors that name the field; and how many bytes of
large ones a worker holds at a time."""

from __future__ import annotations

import asyncio
import codecs
import ctypes
import itertools
import json
import re
import weakref
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from lightllm.errors import BodyTooLarge, MalformedBody, ServerOverloaded, UnsupportedMediaType

LARGE_BODY = 64 * 1024
"""Bytes from which a body is parsed in a thread."""
MAX_CONTAINERS = 1 << 17
"""Lists and objects of a large body. Every further million holds up all requests of this process for a second."""
MAX_VALUES = 1 << 21
"""Entries of its lists and objects together."""
MAX_MEMBERS = 1 << 17
"""Entries of its objects: they take several times as long as those of lists."""
_MAX_MESSAGE = 300

_KEY_END = re.compile(rb'(?<!\\)(?:\\\\)*+"[ \t\r\n]*+:')
"""The end of a key. Quotes inside a string have an odd number of backslashes before them."""
_WANTED = "Input should be "
_BRANCH = re.compile(r"(str|int|float|bool|dict|list|constrained-\w+|function-\w+)(\[.*)?$")
"""How pydantic names the types of a field that has several, in the place of an error."""
BODIES_AT_ONCE = 4
"""The budget, in bodies of the largest size."""
FREE_BYTES = 64 * 1024
"""Of each body: they count for nothing, so that large bodies never keep ordinary requests out."""
_RETRY_SECONDS = 2
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 1 << 20

Model = TypeVar("Model", bound=BaseModel)


async def parse_body(request: Request, model: type[Model], budget: BodyBudget, empty: bytes = b"") -> Model:
    """Reads and validates a body, or what an `empty` one stands for; it counts against the budget as long as it lives.
    Raises `BodyTooLarge`, `UnsupportedMediaType`, `MalformedBody`, or `ServerOverloaded` when large bodies have used up
    the budget."""
    lease = BodyLease(budget)
    try:
        body = await read_body(request, budget.largest, lease) or empty
        if len(body) > LARGE_BODY:
            parsed = await asyncio.to_thread(validate, model, body)
        else:
            parsed = validate(model, body)
    except BaseException:
        lease.end()
        raise
    lease.end_with(parsed)
    return parsed


async def read_body(request: Request, limit: int, lease: BodyLease) -> bytes | bytearray:
    """The whole body. Raises as soon as more is announced, or has come, than is taken, and `UnsupportedMediaType` for a
    compressed one."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding: {encoding[:40]!r} is not supported, send the body uncompressed"
        )
    announced = request.headers.get("content-length", "0")
    if len(announced) > 18 or int(announced) > limit:
        raise _too_large(limit)
    lease.check(int(announced))
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size = len(body) + len(part)
        if size > limit:
            raise _too_large(limit)
        lease.grow(size)
        if not body and not more:
            return part
        body += part
        if not more:
            return body


def validate(model: type[Model], body: bytes | bytearray) -> Model:
    """The body as `model`. Raises `MalformedBody`, naming a field that is wrong, or `BodyTooLarge`."""
    if len(body) > LARGE_BODY:
        _check_counts(body)
    if body.startswith(codecs.BOM_UTF8):
        body = body[len(codecs.BOM_UTF8) :]
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(error, body) from error


def validate_values(model: type[Model], values: dict[str, Any]) -> Model:
    """What a body means to another API, as that one's `model`. Raises `MalformedBody`, naming a field that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _malformed(error, b"") from error


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit >> 20} MiB ({limit} bytes)")


def _check_counts(body: bytes | bytearray) -> None:
    """Counts bytes, not tokens of JSON: those inside strings count as well, but for colons, of which a long text may have as many.
    No text that fits into a model has so many of the others."""
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise BodyTooLarge(f"the request body has more than {MAX_CONTAINERS} lists and objects")
    if body.count(b",") >= MAX_VALUES:
        raise BodyTooLarge(f"the request body has more than {MAX_VALUES} values")
    if body.count(b":") > MAX_MEMBERS:
        keys = itertools.islice(_KEY_END.finditer(body), MAX_MEMBERS + 1)
        if sum(1 for _ in keys) > MAX_MEMBERS:
            raise BodyTooLarge(f"the objects of the request body have more than {MAX_MEMBERS} fields")


def _malformed(error: ValidationError, body: bytes | bytearray) -> MalformedBody:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid" or not first["loc"]:
        reason = _encoding_error(body) or first["msg"]
        return MalformedBody(f"the body is not a valid JSON object: {reason}"[:_MAX_MESSAGE])
    field = str(first["loc"][0])
    path, message = _best([one for one in errors if str(one["loc"][0]) == field])
    return MalformedBody(f"{path}: {message}"[:_MAX_MESSAGE], param=field)


def _encoding_error(body: bytes | bytearray) -> str:
    """Why these bytes cannot be JSON (RFC 8259, 8.1: it is UTF-8); empty if they can."""
    if body.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return "it is compressed (gzip or zstd), send it uncompressed"
    encoding = json.detect_encoding(bytes(body[:4]))
    if not encoding.startswith("utf-8"):
        return f"it is {encoding.upper()}, JSON has to be UTF-8"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8: byte 0x{body[error.start]:02x} at position {error.start}"
    return ""


def _best(errors: Sequence[Any]) -> tuple[str, str]:
    """Where one field is wrong, and why; `errors` as pydantic lists them. A field of several types has an error for each:
    the type that was meant is the one with a limit that is broken, or the one that got furthest; where none did, all are
    named."""
    located = [([part for part in one["loc"] if not _BRANCH.match(str(part))], one) for one in errors]

    def progress(pair: tuple[list[int | str], Any]) -> tuple[bool, int, list[int]]:
        path, one = pair
        return not one["type"].endswith("_type"), len(path), [part for part in path if isinstance(part, int)]

    path, best = max(located, key=progress)
    message = best["msg"]
    if best["type"].endswith("_type"):
        wanted = dict.fromkeys(one["msg"].removeprefix(_WANTED) for where, one in located if where == path)
        message = _WANTED + " or ".join(wanted)
    return ".".join(map(str, path)), message


# -- the budget


class BodyBudget:
    """How many bytes of large bodies one worker holds: what has come of them, until nothing refers to the parsed body any more.
    `largest`: bytes that one body may have; `what`: what else is held so, for errors."""

    def __init__(self, largest: int, what: str = "large request bodies") -> None:
        self.largest = largest
        self.what = what
        self.total = BODIES_AT_ONCE * largest
        self.sizes: dict[int, int] = {}
        """Bytes by lease. Each change is atomic: the garbage collector may end a lease at any time, in any thread."""

    @property
    def held(self) -> int:
        """bytes"""
        return sum(list(self.sizes.values()))


class BodyLease:
    """What one request holds of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget

    def check(self, size: int) -> None:
        """Raises `ServerOverloaded` if a body of `size` bytes exceeded the budget now."""
        budget = self._budget
        if (
            size > FREE_BYTES
            and budget.held - budget.sizes.get(id(self), 0) + size - FREE_BYTES > budget.total
        ):
            raise ServerOverloaded(
                f"the {budget.what} that are being read have {budget.total >> 20} MiB together, the most that "
                f"is held at a time; another one of {max(1, size >> 20)} MiB has to wait",
                retry_after=_RETRY_SECONDS,
            )

    def grow(self, size: int) -> None:
        """So much of the body has come. Raises `ServerOverloaded` beyond the budget."""
        if size > FREE_BYTES:
            self.check(size)
            self._budget.sizes[id(self)] = size - FREE_BYTES

    def end(self) -> None:
        """The body is gone."""
        self._budget.sizes.pop(id(self), None)

    def end_with(self, body: object) -> None:
        """Ends when nothing refers to `body` any more."""
        if id(self) in self._budget.sizes:
            weakref.finalize(body, self.end)


def give_back_large_blocks() -> None:
    """Lets the allocator return blocks of a mebibyte or more as soon as they are freed. By default glibc raises that limit
    with every large block that is freed, up to 32 MiB, and keeps smaller ones: a worker would stay as large as the bodies
    it once had. Elsewhere than on glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
