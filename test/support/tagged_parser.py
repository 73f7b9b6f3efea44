"""A parser of answers with simple markers: `<think>reasoning</think>`, `<call NAME>arguments</call>`."""

from __future__ import annotations

import re

from msgspec.structs import replace

from lightllm.parsers.deltas import Delta

_MARKER = re.compile(r"</?think>|<call (\w+)>|</call>")
_BEGINNING = re.compile(r"<(/?[a-z]*|call \w*)$")
"""What may still become a marker."""


class TaggedParser:
    spans: None = None

    def __init__(self) -> None:
        self._held = ""
        self._state = Delta("")
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        text = self._held + text
        deltas, at = [], 0
        for marker in _MARKER.finditer(text):
            deltas.append(self._piece(text[at : marker.start()]))
            deltas += self._enter(marker)
            at = marker.end()
        beginning = _BEGINNING.search(text, at)
        end = beginning.start() if beginning else len(text)
        self._held = text[end:]
        deltas.append(self._piece(text[at:end]))
        return [delta for delta in deltas if delta.text or delta.name]

    def end(self) -> list[Delta]:
        held, self._held = self._held, ""
        return [self._piece(held)] if held else []

    def _piece(self, text: str) -> Delta:
        return replace(self._state, text=text)

    def _enter(self, marker: re.Match[str]) -> list[Delta]:
        if marker[1]:
            index, self._calls = self._calls, self._calls + 1
            self._state = Delta("", "tool_call", index)
            return [replace(self._state, name=marker[1], call_id=f"call_{index}")]
        self._state = Delta("", "reasoning") if marker[0] == "<think>" else Delta("")
        return []
