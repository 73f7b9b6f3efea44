"""Request bodies: read with a limit, parsed by pydantic straight from the bytes, errors that name the field."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from lightllm.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType
from lightllm.http.body_budget import BodyBudget, BodyLease

LARGE_BODY = 64 * 1024
"""Bytes from which a body is parsed in a thread."""
MAX_CONTAINERS = 1 << 17
"""Lists and objects of a large body. Every further million holds up all requests of this process for a second."""
MAX_VALUES = 1 << 21
"""Entries of its lists and objects together."""
_MAX_MESSAGE = 300

_WANTED = "Input should be "
_BRANCH = re.compile(r"(str|int|float|bool|dict|list|constrained-\w+|function-\w+)(\[.*)?$")
"""How pydantic names the types of a field that has several, in the place of an error."""

Model = TypeVar("Model", bound=BaseModel)


async def parse_body(request: Request, model: type[Model], budget: BodyBudget, empty: bytes = b"") -> Model:
    """Reads and validates a body, or what an `empty` one stands for; it counts against the budget as long as it lives.
    Raises `BodyTooLarge`, `UnsupportedMediaType`, `MalformedBody`, or `ServerOverloaded` when large bodies have used up
    the budget."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding: {encoding[:40]!r} is not supported, send the body uncompressed"
        )
    lease = BodyLease(budget)
    try:
        body = await _read(request, budget.largest, lease) or empty
        if len(body) > LARGE_BODY:
            parsed = await asyncio.to_thread(validate, model, body)
        else:
            parsed = validate(model, body)
    except BaseException:
        lease.end()
        raise
    lease.end_with(parsed)
    return parsed


async def _read(request: Request, limit: int, lease: BodyLease) -> bytes | bytearray:
    """The whole body. Raises as soon as more is announced, or has come, than is taken."""
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


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit >> 20} MiB ({limit} bytes)")


def _check_counts(body: bytes | bytearray) -> None:
    """Counts bytes, not tokens of JSON: those inside strings count as well. No text that fits into a model has so many."""
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise BodyTooLarge(f"the request body has more than {MAX_CONTAINERS} lists and objects")
    if body.count(b",") >= MAX_VALUES:
        raise BodyTooLarge(f"the request body has more than {MAX_VALUES} values")


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
