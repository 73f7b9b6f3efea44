"""The items of an answer of `/v1/responses`, as they grow out of a parser's deltas, and the events that tell of it.

A whole answer is the items alone; a stream is the events, whose last ones hold the same items.

    output_item.added
      content_part.added      a message and reasoning have one part
        TEXT.delta ...        output_text, reasoning_text, function_call_arguments
        TEXT.done
      content_part.done
    output_item.done
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

from lightllm.parsers.deltas import Delta


class Event(NamedTuple):
    """All of a server-sent event but its number."""

    type: str
    fields: dict[str, Any]


class _Kind(NamedTuple):
    id_prefix: str
    events: str
    """What its events begin with."""
    part: str | None
    """Type of its only part."""


_KINDS = {
    "content": _Kind("msg", "response.output_text", "output_text"),
    "reasoning": _Kind("rs", "response.reasoning_text", "reasoning_text"),
    "tool_call": _Kind("fc", "response.function_call_arguments", None),
}


@dataclasses.dataclass(slots=True)
class _Open:
    """The item that grows."""

    kind: str
    call: int
    """Index of a tool call."""
    item: dict[str, Any]
    index: int
    texts: list[str] = dataclasses.field(default_factory=list)


class OutputItems:
    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        """Items that are complete, in their order."""
        self._open: _Open | None = None

    def push(self, deltas: Iterable[Delta]) -> list[Event]:
        events: list[Event] = []
        for delta in deltas:
            if not delta.text and not delta.name:
                continue
            now = self._open
            call = delta.index if delta.kind == "tool_call" else 0
            if now is None or now.kind != delta.kind or now.call != call:
                events += self._close("completed")
                now = self._begin(delta, call, events)
            if delta.text:
                now.texts.append(delta.text)
                events.append(self._event("delta", now, delta=delta.text))
        return events

    def end(self, status: str) -> list[Event]:
        """The last item has this status: completed or incomplete. An answer without text is a message without."""
        events: list[Event] = []
        if self._open is None and not self.done and status == "completed":
            self._begin(Delta(""), 0, events)
        return events + self._close(status)

    def _begin(self, delta: Delta, call: int, events: list[Event]) -> _Open:
        kind = _KINDS[delta.kind]
        item: dict[str, Any] = {"id": f"{kind.id_prefix}_{secrets.token_hex(12)}"}
        if delta.kind == "tool_call":
            item |= {"type": "function_call", "call_id": delta.call_id, "name": delta.name, "arguments": ""}
        elif delta.kind == "reasoning":
            item |= {"type": "reasoning", "summary": [], "content": []}
        else:
            item |= {"type": "message", "role": "assistant", "content": []}
        item["status"] = "in_progress"
        now = self._open = _Open(delta.kind, call, item, len(self.done))
        events.append(Event("response.output_item.added", {"output_index": now.index, "item": {**item}}))
        if kind.part:
            events.append(self._part_event("added", now, _part(kind.part, "")))
        return now

    def _close(self, status: str) -> list[Event]:
        now, self._open = self._open, None
        if now is None:
            return []
        part, text, events = _KINDS[now.kind].part, "".join(now.texts), []
        item = now.item | {"status": status}
        if part is None:
            if not text and status == "completed":
                text = "{}"  # clients read it as JSON
                events.append(self._event("delta", now, delta=text))
            item["arguments"] = text
            events.append(self._event("done", now, name=item["name"], arguments=text))
        else:
            item["content"] = [_part(part, text)]
            events.append(self._event("done", now, text=text))
            events.append(self._part_event("done", now, item["content"][0]))
        self.done.append(item)
        return [*events, Event("response.output_item.done", {"output_index": now.index, "item": item})]

    @staticmethod
    def _event(what: str, now: _Open, **fields: Any) -> Event:
        kind = _KINDS[now.kind]
        place: dict[str, Any] = {"item_id": now.item["id"], "output_index": now.index}
        if kind.part:
            place["content_index"] = 0
        if now.kind == "content":
            fields["logprobs"] = []
        return Event(f"{kind.events}.{what}", place | fields)

    @staticmethod
    def _part_event(what: str, now: _Open, part: dict[str, Any]) -> Event:
        place = {"item_id": now.item["id"], "output_index": now.index, "content_index": 0}
        return Event(f"response.content_part.{what}", place | {"part": part})


def _part(kind: str, text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, "text": text}
    return part | {"annotations": [], "logprobs": []} if kind == "output_text" else part
