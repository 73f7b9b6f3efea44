"""How the catalogue writes its requests down."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from answers.exchange import Case


def post(path: str, body: Any, *headers: str, version: str = "1.1", method: str = "POST") -> bytes:
    """The bytes of a request; a `body` that is neither bytes nor None is sent as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1"]
    given = " ".join(headers).lower()
    if data or method == "POST":
        if "content-type:" not in given:
            lines.append("Content-Type: application/json")
        if "content-length:" not in given and "transfer-encoding:" not in given:
            lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + data


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return post(path, None, *headers, method=method, version=version)


def numbered(prefix: str, bodies: Iterable[Any], path: str, *headers: str, **traits: bool) -> list[Case]:
    """A case for each body, named by its place."""
    return [
        Case(f"{prefix}_{number:02}", post(path, body, *headers), **traits)  # type: ignore[arg-type]
        for number, body in enumerate(bodies)
    ]
