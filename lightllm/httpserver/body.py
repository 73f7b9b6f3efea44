"""Request bodies: read with a limit, parsed by pydantic straight from the bytes, errors that name the field."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from lightllm.errors import BodyTooLarge, MalformedBody

LARGE_BODY = 64 * 1024
"""Bytes from which a body is parsed in a thread."""
DISCARDED_BYTES = 1 << 28
"""How much of a body that is too large is read and dropped..."""
DISCARD_SECONDS = 5.0
"""... and for how long at most."""
MAX_CONTAINERS = 1 << 17
"""Lists and objects of a large body. Every further million holds up all requests of this process for a second."""
MAX_VALUES = 1 << 21
"""Entries of its lists and objects together."""
_MAX_MESSAGE = 300

_WANTED = "Input should be "
_BRANCH = re.compile(r"(str|int|float|bool|dict|list|constrained-\w+|function-\w+)(\[.*)?$")
"""How pydantic names the types of a field that has several, in the place of an error."""

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as more than `limit` bytes are announced or have come."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        if "expect" not in request.headers:
            await _discard(request)
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            if message.get("more_body", False):
                await _discard(request)
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _discard(request: Request) -> None:
    """Reads on for a while. A client that sends all before it reads, and wants the connection closed then, would meet a
    broken connection in the place of the error."""
    left = DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def parse_body(request: Request, model: type[Model], limit: int) -> Model:
    """Reads and validates a body. Raises `BodyTooLarge` or `MalformedBody`."""
    body = await read_body(request, limit)
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(validate, model, body)
    return validate(model, body)


def validate(model: type[Model], body: bytes) -> Model:
    """The body as `model`. Raises `MalformedBody`, naming a field that is wrong, or `BodyTooLarge`."""
    if len(body) > LARGE_BODY:
        _check_counts(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(error) from error


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit >> 20} MiB ({limit} bytes)")


def _check_counts(body: bytes) -> None:
    """Counts bytes, not tokens of JSON: those inside strings count as well. No text that fits into a model has so many."""
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise BodyTooLarge(f"the request body has more than {MAX_CONTAINERS} lists and objects")
    if body.count(b",") >= MAX_VALUES:
        raise BodyTooLarge(f"the request body has more than {MAX_VALUES} values")


def _malformed(error: ValidationError) -> MalformedBody:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid" or not first["loc"]:
        return MalformedBody(f"the body is not a valid JSON object: {first['msg']}"[:_MAX_MESSAGE])
    field = str(first["loc"][0])
    path, message = _best([one for one in errors if str(one["loc"][0]) == field])
    return MalformedBody(f"{path}: {message}"[:_MAX_MESSAGE], param=field)


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
