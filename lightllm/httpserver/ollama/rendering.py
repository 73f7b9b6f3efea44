"""Answers of Ollama's `/api/chat` and `/api/generate`, whole and streamed: JSON objects, of which a stream sends one a line. A tool
call is in one of them, when its arguments are complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from lightllm.errors import RequestError
from lightllm.http.error_responses import ollama_body
from lightllm.httpserver.record import RequestRecord
from lightllm.httpserver.rendering import arguments_object, json_bytes, new_deltas
from lightllm.parsers.deltas import Delta, DeltaParser

NDJSON = b"application/x-ndjson"
_FIELDS = {"content": "content", "reasoning": "thinking"}


class OllamaRenderer:
    """The renderer of one request (`responses.Renderer`), which has one answer."""

    def __init__(self, model: str, make_parser: Callable[[], DeltaParser], chat: bool) -> None:
        """chat: the text stands in a message, not in `response`."""
        self._model = model
        self._parser = make_parser()
        self._chat = chat
        self._call: list[Delta] = []
        """The deltas of a call that may go on."""
        self._failed = False

    @property
    def ping(self) -> bytes:
        """What a silent stream sends: a piece without a text. Clients read every line as JSON."""
        return self._line({"content": ""})

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that says nothing, which has Ollama load its model, or unload it."""
        return self._object({"content": ""}) | {"done": True, "done_reason": reason}

    def answer(self, record: RequestRecord) -> bytes:
        (choice,) = record.choices
        parts = [*self._parts([*self._parser.push(choice.text), *self._parser.end()]), *self._end_call()]
        whole: dict[str, Any] = {"content": ""}
        for part in parts:
            for name, value in part.items():
                whole[name] = whole[name] + value if name in whole else value
        return json_bytes(self._object(whole) | self._end_of(record))

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        (choice,) = record.choices
        return [self._line(part) for part in self._parts(new_deltas(choice, self._parser))]

    def error(self, error: RequestError) -> bytes:
        self._failed = True
        return json_bytes(ollama_body(error)) + b"\n"

    def end(self, record: RequestRecord) -> list[bytes]:
        if self._failed:
            return []
        last = self._object({"content": ""}) | self._end_of(record)
        return [*map(self._line, self._end_call()), json_bytes(last) + b"\n"]

    def _parts(self, deltas: Sequence[Delta]) -> Iterable[dict[str, Any]]:
        """Parts of a message, each with a piece of the content or of the thinking, or with a call that is complete."""
        for delta in deltas:
            if delta.kind != "tool_call" or delta.name:
                yield from self._end_call()
            if delta.kind == "tool_call":
                self._call.append(delta)
            elif delta.text:
                yield {_FIELDS[delta.kind]: delta.text}

    def _end_call(self) -> Iterable[dict[str, Any]]:
        if self._call:
            first, arguments = self._call[0], "".join(delta.text for delta in self._call)
            self._call = []
            function = {"index": first.index, "name": first.name, "arguments": arguments_object(arguments)}
            yield {"tool_calls": [{"id": first.call_id, "function": function}]}

    def _line(self, part: dict[str, Any]) -> bytes:
        return json_bytes(self._object(part) | {"done": False}) + b"\n"

    def _object(self, part: dict[str, Any]) -> dict[str, Any]:
        head = {"model": self._model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        if self._chat:
            return head | {"message": {"role": "assistant", "content": "", **part}}
        part = {"response": part.get("content", ""), **part}
        part.pop("content", None)
        return head | part

    def _end_of(self, record: RequestRecord) -> dict[str, Any]:
        """Durations in nanoseconds; the model is always loaded, so what Ollama calls loading is the time in the waiting list."""
        (choice,) = record.choices
        entered = record.entered or record.started
        first = record.first_token or entered
        return {
            "done": True,
            "done_reason": choice.finish.reason if choice.finish else None,
            "total_duration": _nanoseconds(time.monotonic() - record.started),
            "load_duration": _nanoseconds(entered - record.started),
            "prompt_eval_count": record.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first - entered),
            "eval_count": record.output_tokens,
            "eval_duration": _nanoseconds(record.last_token - first),
        }


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
