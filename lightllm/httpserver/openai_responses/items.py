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
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lightllm.parsers.deltas import Delta

Logprob = dict[str, Any]
"""Of one token: as chats have it."""
_ITEM_ID = re.compile(r"[a-z]{2,3}_([0-9a-f]{48})_i?[0-9]+")


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
    logprobs: list[Logprob] = dataclasses.field(default_factory=list)


class OutputItems:
    def __init__(self, response_id: str) -> None:
        self._response_id = response_id
        self.done: list[dict[str, Any]] = []
        """Items that are complete, in their order."""
        self._open: _Open | None = None
        self._pending: list[Logprob] = []
        """Of tokens whose text has not come, or may turn out to be no text of a message."""

    def push(self, deltas: Iterable[Delta], logprob: Logprob | None = None) -> list[Event]:
        """logprob: of the token that these deltas come of."""
        events: list[Event] = []
        if logprob is not None:
            self._pending.append(logprob)
        for delta in deltas:
            if not delta.text and not delta.name:
                continue
            now = self._open
            call = delta.index if delta.kind == "tool_call" else 0
            if now is None or now.kind != delta.kind or now.call != call:
                events += self._close("completed")
                now = self._begin(delta, call, events)
            own, self._pending = self._pending if now.kind == "content" else [], []
            if delta.text:
                now.texts.append(delta.text)
                now.logprobs += own
                events.append(self._event("delta", now, own, delta=delta.text))
        if self._open is not None and self._open.kind != "content":
            self._pending = []
        return events

    def end(self, status: str) -> list[Event]:
        """The last item has this status: completed or incomplete. An answer without text is a message without."""
        events: list[Event] = []
        if self._open is None and not self.done and status == "completed":
            self._begin(Delta(""), 0, events)
        return events + self._close(status)

    def _begin(self, delta: Delta, call: int, events: list[Event]) -> _Open:
        kind = _KINDS[delta.kind]
        item: dict[str, Any] = {"id": item_id(kind.id_prefix, self._response_id, str(len(self.done)))}
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
                events.append(self._event("delta", now, (), delta=text))
            item["arguments"] = text
            events.append(self._event("done", now, (), name=item["name"], arguments=text))
        else:
            item["content"] = [_part(part, text, now.logprobs)]
            events.append(self._event("done", now, now.logprobs, text=text))
            events.append(self._part_event("done", now, item["content"][0]))
        self.done.append(item)
        return [*events, Event("response.output_item.done", {"output_index": now.index, "item": item})]

    @staticmethod
    def _event(what: str, now: _Open, logprobs: Sequence[Logprob], **fields: Any) -> Event:
        kind = _KINDS[now.kind]
        place: dict[str, Any] = {"item_id": now.item["id"], "output_index": now.index}
        if kind.part:
            place["content_index"] = 0
        if now.kind == "content":
            fields["logprobs"] = logprobs
        return Event(f"{kind.events}.{what}", place | fields)

    @staticmethod
    def _part_event(what: str, now: _Open, part: dict[str, Any]) -> Event:
        place = {"item_id": now.item["id"], "output_index": now.index, "content_index": 0}
        return Event(f"response.content_part.{what}", place | {"part": part})


def _part(kind: str, text: str, logprobs: Sequence[Logprob] = ()) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, "text": text}
    return part | {"annotations": [], "logprobs": logprobs} if kind == "output_text" else part


def item_id(prefix: str, response_id: str, place: str) -> str:
    """Of an item of a response; place: differs among its items. The item is found by it (`response_of`)."""
    return f"{prefix}_{response_id.removeprefix('resp_')}_{place}"


def response_of(item: str) -> str | None:
    """The id of the response that has made this id of an item; None: none has."""
    match = _ITEM_ID.fullmatch(item)
    return f"resp_{match[1]}" if match else None
