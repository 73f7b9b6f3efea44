"""Request bodies: read with a limit, parsed by pydantic straight from the bytes, errors that name the field."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from lightllm.errors import BodyTooLarge, MalformedBody

LARGE_BODY = 64 * 1024
"""Bytes from which a body is parsed in a thread."""
_MAX_MESSAGE = 300

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as more than `limit` bytes are announced or have come."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
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
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def parse_body(request: Request, model: type[Model], limit: int) -> Model:
    """Reads and validates a body. Raises `BodyTooLarge` or `MalformedBody`."""
    body = await read_body(request, limit)
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(validate, model, body)
    return validate(model, body)


def validate(model: type[Model], body: bytes) -> Model:
    """The body as `model`. Raises `MalformedBody`, naming the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(error) from error


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit >> 20} MiB ({limit} bytes)")


def _malformed(error: ValidationError) -> MalformedBody:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid" or not first["loc"]:
        return MalformedBody(f"the body is not a valid JSON object: {first['msg']}"[:_MAX_MESSAGE])
    path = ".".join(str(part) for part in first["loc"])
    return MalformedBody(f"{path}: {first['msg']}"[:_MAX_MESSAGE], param=str(first["loc"][0]))
