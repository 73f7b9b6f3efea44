"""Server-sent events as clients read them."""

from __future__ import annotations

import json

import httpx


def chunks(response: httpx.Response) -> list[dict]:
    """The parsed events; checks the framing and the terminator."""
    assert response.status_code == 200, response.text
    frames = response.content.split(b"\n\n")
    assert frames.pop() == b"" and frames.pop() == b"data: [DONE]"
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
