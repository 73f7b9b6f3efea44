"""Arguments as Gemma's models write them, an object with bare keys whose texts stand between tokens of their own, made JSON as they come.

    {city:<|"|>Paris<|"|>,days:3,where:{lat:1.5}}    ->    {"city": "Paris", "days": 3, "where": {"lat": 1.5}}

JSON's own quotes are understood, too: a grammar may have made the model write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from lightllm.parsers.readers import SPACE, json_string

_WORD_END = re.compile(r"[,}\]]")
_KEY_END = re.compile(r"[:,}\]]")
_JSON_TEXT_SIGN = re.compile(r'["\\\x00-\x1f]')
_MAX_WORD = 4096
"""Characters of a number or a key, which ends there at the latest."""
_PYTHONS = {"None": "null", "True": "true", "False": "false"}
_Place = Literal["value", "behind_value", "key", "behind_key", "text", "json_text", "end"]


class BareObject:
    """Reads one object. What comes out does not depend on how the text is cut: each place takes what is certain."""

    def __init__(self, quote: str) -> None:
        """quote: what stands before and behind a text."""
        self._quote = quote
        self._place: _Place = "value"
        self._open: list[str] = []
        """The brackets that will close what is open."""
        self._first = True
        """Nothing stands in the last of them yet."""
        self._is_key = self._escaped = False
        """The text is a key; its next character belongs to a backslash."""
        self._held = ""

    def take(self, text: str) -> tuple[str, str | None]:
        """JSON of the next piece, of which the first begins with the object's bracket, and what stands behind the object; None: it goes on."""
        self._held += text
        said: list[str] = []
        while self._held and self._place != "end" and self._READERS[self._place](self, said):
            pass
        return "".join(said), self._held if self._place == "end" else None

    def _value(self, said: list[str]) -> bool:
        in_object = self._open[-1:] == ["}"]
        if not self._has_sign():
            return False
        sign = self._held[0]
        if in_object and sign in ",}]":
            said.append("null")
            self._place = "behind_value"
        elif self._open and sign in "}]":
            self._close(said)
        elif self._open and sign == ",":
            self._held = self._held[1:]
        elif sign in "{[":
            said.append(self._separator(not in_object) + sign)
            self._held = self._held[1:]
            self._open.append("}" if sign == "{" else "]")
            self._place, self._first = "key" if sign == "{" else "value", True
        elif not self._begins_text(said, not in_object):
            word = self._word(_WORD_END)
            if word is None:
                return False
            said.append(self._separator(not in_object) + _scalar(word))
            self._place = "behind_value"
        return True

    def _behind_value(self, said: list[str]) -> bool:
        if not self._has_sign():
            return False
        if self._held[0] in "}]":
            self._close(said)
            return True
        if self._held[0] == ",":
            self._place = "key" if self._open[-1] == "}" else "value"
        self._held = self._held[1:]
        return True

    def _key(self, said: list[str]) -> bool:
        if not self._has_sign():
            return False
        if self._held[0] == ",":
            self._held = self._held[1:]
        elif self._held[0] in "}]":
            self._close(said)
        elif self._begins_text(said, True):
            self._is_key = True
        else:
            word = self._word(_KEY_END)
            if word is None:
                return False
            said.append(f'{self._separator(True)}"{json_string(word)}"')
            self._place = "behind_key"
        return True

    def _behind_key(self, said: list[str]) -> bool:
        if not self._has_sign():
            return False
        said.append(": ")
        self._place = "value"
        self._held = self._held.removeprefix(":")
        return True

    def _text(self, said: list[str]) -> bool:
        before, quote, behind = self._held.partition(self._quote)
        if quote:
            self._held = behind
            self._end_text(said, json_string(before))
            return True
        sizes = range(min(len(before), len(self._quote) - 1), 0, -1)
        size = next((size for size in sizes if self._quote.startswith(before[-size:])), 0)
        said.append(json_string(before[: len(before) - size]))
        self._held = before[len(before) - size :]
        return False

    def _json_text(self, said: list[str]) -> bool:
        if self._escaped:
            self._escaped = False
            said.append(self._held[0])
            self._held = self._held[1:]
            return True
        sign = _JSON_TEXT_SIGN.search(self._held)
        end = sign.start() if sign else len(self._held)
        said.append(self._held[:end])
        self._held = self._held[end + 1 :]
        if sign is None:
            return False
        if sign[0] == '"':
            self._end_text(said, "")
        else:
            self._escaped = sign[0] == "\\"
            said.append(sign[0] if self._escaped else json_string(sign[0]))
        return True

    # -- parts

    def _has_sign(self) -> bool:
        """The text begins with something that is certain."""
        self._held = self._held.lstrip(SPACE)
        is_part = len(self._held) < len(self._quote) and self._quote.startswith(self._held)
        return bool(self._held) and not is_part

    def _separator(self, wanted: bool) -> str:
        first, self._first = self._first, False
        return ", " if wanted and not first else ""

    def _begins_text(self, said: list[str], separates: bool) -> bool:
        for quote, place in ((self._quote, "text"), ('"', "json_text")):
            if self._held.startswith(quote):
                self._held = self._held[len(quote) :]
                said.append(self._separator(separates) + '"')
                self._place = "text" if place == "text" else "json_text"
                return True
        return False

    def _end_text(self, said: list[str], rest: str) -> None:
        said.append(rest + '"')
        self._place = "behind_key" if self._is_key else "behind_value"
        self._is_key = False

    def _word(self, end: re.Pattern[str]) -> str | None:
        """What stands before the end; None: that has not come."""
        match = end.search(self._held, 0, _MAX_WORD)
        if match is None and len(self._held) < _MAX_WORD:
            return None
        size = match.start() if match else _MAX_WORD
        word, self._held = self._held[:size], self._held[size:]
        return word.strip(SPACE)

    def _close(self, said: list[str]) -> None:
        said.append(self._open.pop())
        self._held = self._held[1:]
        self._place, self._first = "behind_value" if self._open else "end", False

    _READERS: ClassVar[Mapping[_Place, Callable[[BareObject, list[str]], bool]]] = {
        "value": _value, "behind_value": _behind_value, "key": _key, "behind_key": _behind_key, "text": _text, "json_text": _json_text,
    }  # fmt: skip


def _scalar(word: str) -> str:
    """A number or a constant as JSON; anything else is a text."""
    word = _PYTHONS.get(word, word)
    try:
        value = json.loads(word, parse_constant=lambda name: name)
    except ValueError:
        return f'"{json_string(word)}"'
    return word if value is None or isinstance(value, int | float) else f'"{json_string(word)}"'
