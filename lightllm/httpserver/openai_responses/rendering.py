"""Answers of `/v1/responses`, whole and streamed: a response object, whose output is what `OutputItems` makes of the parser's
deltas."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightllm.errors import RequestError
from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.openai_responses.items import Event, Logprob, OutputItems
from lightllm.httpserver.record import ChoiceRecord, RequestRecord
from lightllm.httpserver.rendering import json_bytes, named_event
from lightllm.httpserver.timings import timings
from lightllm.parsers.deltas import DeltaParser, tokens_within

_STATUS = {"stop": "completed", "length": "incomplete", "abort": "cancelled"}
"""Finish reason -> status of the response."""


class ResponsesRenderer:
    """The renderer of one request (`responses.Renderer`)."""

    def __init__(
        self,
        head: dict[str, Any],
        make_parser: Callable[[], DeltaParser],
        keep: Callable[[bytes], None] | None = None,
        logprobs: Logprobs | None = None,
        timed: bool = False,
    ) -> None:
        """head: the response object as it begins (`api.head`); keep: takes it as it has ended, before the
        client gets the end; logprobs: what writes those of the message's text, if they are wanted; timed: tell how long it took."""
        self._timed = timed
        self.ended = False
        """There is a response object that has ended."""
        self._head = head
        self._keep = keep
        self._parser = make_parser()
        self._logprobs = logprobs
        self._items = OutputItems(head["id"])
        self._sequence = 0
        self._failed = False

    def answer(self, record: RequestRecord) -> bytes:
        self._push(record.choices[0])
        return self._kept(self._response(record))

    def opening(self) -> list[bytes]:
        """The events that a stream begins with."""
        begin = [Event(f"response.{what}", {"response": self._head}) for what in ("created", "in_progress")]
        return [self._encoded(event) for event in begin]

    def preparation(self, record: RequestRecord) -> None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        choice = record.choices[0]
        if not choice.has_news:
            return []
        events = self._push(choice)
        choice.ended = choice.finish is not None
        return [self._encoded(event) for event in events]

    def error(self, error: RequestError) -> bytes:
        self._failed = True
        failure = {"code": error.code or "server_error", "message": error.message}
        if error.kind == "server_error":
            failure["code"] = "server_error"  # OpenAI's own word for it
        response = self._head | {"status": "failed", "error": failure, "output": self._items.done}
        self._kept(response)
        return self._encoded(Event("response.failed", {"response": response}))

    def end(self, record: RequestRecord) -> list[bytes]:
        if self._failed:
            return []
        response = self._response(record)
        self._kept(response)
        kind = "completed" if response["status"] == "completed" else "incomplete"
        return [self._encoded(Event(f"response.{kind}", {"response": response}))]

    def _kept(self, response: dict[str, Any]) -> bytes:
        data = json_bytes(response)
        self.ended = True
        if self._keep is not None:
            self._keep(data)
        return data

    def _push(self, choice: ChoiceRecord) -> list[Event]:
        """What the text that has not been sent, and the end if it has come, make of the items."""
        first = choice.sent
        text = choice.take_text()
        if self._logprobs is None:
            events = self._items.push(self._parser.push(text)) if text else []
        else:
            events = self._push_tokens(choice, first, self._logprobs)
        if choice.finish is not None:
            events += self._items.push(self._parser.end())
            events += self._items.end("completed" if choice.finish.reason == "stop" else "incomplete")
        return events

    def _push_tokens(self, choice: ChoiceRecord, first: int, logprobs: Logprobs) -> list[Event]:
        """One token after the other, from `first` on: so it is known which tokens a text comes of."""
        events: list[Event] = []
        texts = choice.texts[first:]
        entries: list[Logprob | None] = [*logprobs.chat(choice, first)["content"]]
        if choice.finish is not None and texts and not texts[-1]:
            entries[-1] = None  # it ends the answer, and is none of its text
        for text, entry in zip(texts, entries, strict=True):
            events += self._items.push(self._parser.push(text) if text else [], entry)
        if choice.finish is not None and choice.tail:
            events += self._items.push(self._parser.push(choice.tail))
        return events

    def _encoded(self, event: Event) -> bytes:
        number = self._sequence
        self._sequence += 1
        return named_event(event.type, {"sequence_number": number, **event.fields})

    def _response(self, record: RequestRecord) -> dict[str, Any]:
        """Of a finished record."""
        choice = record.choices[0]
        status = _STATUS[choice.finish.reason] if choice.finish is not None else "incomplete"
        ended: dict[str, Any] = {"status": status, "output": self._items.done, "usage": self._usage(record)}
        if status == "completed":
            ended["completed_at"] = int(time.time())
        if status == "incomplete":
            ended["incomplete_details"] = {"reason": "max_output_tokens"}
        if self._timed:
            ended["timings"] = timings(record)
        return self._head | ended

    def _usage(self, record: RequestRecord) -> dict[str, Any]:
        choice, spans = record.choices[0], self._parser.spans
        reasoning = tokens_within(choice.texts, spans) if spans is not None else 0
        return {
            "input_tokens": record.prompt_tokens,
            "input_tokens_details": {"cached_tokens": record.cached_tokens},
            "output_tokens": record.output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": record.prompt_tokens + record.output_tokens,
        }
