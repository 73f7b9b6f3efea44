"""Streams of Anthropic's API as its clients read them."""

from __future__ import annotations

import json
from typing import Any


def read_events(stream: bytes) -> list[dict[str, Any]]:
    """The parsed events; checks the framing."""
    frames = stream.split(b"\n\n")
    assert frames.pop() == b""
    events = []
    for frame in frames:
        name, data = frame.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    return events


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of them; checks their order."""
    first, *middle, delta, last = [event for event in events if event["type"] != "ping"]
    assert first["type"] == "message_start" and delta["type"] == "message_delta"
    assert last == {"type": "message_stop"}
    message = first["message"]
    assert (
        message["content"] == [] and message["stop_reason"] is None and message["usage"]["output_tokens"] == 0
    )
    opened = False
    for event in middle:
        content, kind = message["content"], event["type"].removeprefix("content_block_")
        assert opened == (kind != "start"), "one block is open at a time"
        opened = kind != "stop"
        if kind == "start":
            content.append(event["content_block"])
        assert event["index"] == len(content) - 1, "indices are dense"
        if kind == "delta":
            _add(content[-1], event["delta"])
    assert not opened
    for block in message["content"]:
        if "arguments" in block:
            block["input"] = json.loads(block.pop("arguments"))
    return message | delta["delta"] | {"usage": delta["usage"]}


def _add(block: dict[str, Any], delta: dict[str, str]) -> None:
    kind = delta["type"]
    if kind == "signature_delta":
        block["signature"] = delta["signature"]
    elif kind == "input_json_delta":
        assert block["type"] == "tool_use"
        block["arguments"] = block.get("arguments", "") + delta["partial_json"]
    else:
        name = kind.removesuffix("_delta")
        assert block["type"] == name
        block[name] += delta[name]
