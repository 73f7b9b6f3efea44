"""The calls of one answer: what is said of them, and in which words."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable
from typing import Literal, NamedTuple

from lightllm.parsers.deltas import Delta
from lightllm.parsers.readers import SPACE, ObjectCall, ParameterTypes, json_string
from lightllm.parsers.table import Family, Reads

_LETTERS = string.ascii_letters + string.digits


class Rules(NamedTuple):
    """What one request wants of its parser."""

    functions: ParameterTypes = ParameterTypes({})
    parallel: bool = True
    """More than one call."""
    reasoning: Literal["apart", "content", "none"] = "apart"
    """Where reasoning goes: to deltas of its own, into the content with its markers, nowhere."""


class Calls:
    """At most one is open: its name has been said, its arguments are not complete."""

    def __init__(self, family: Family | None, rules: Rules, add: Callable[[Delta], None]) -> None:
        """add: takes what is said."""
        self.open = False
        self.said = False
        """Something of the open call's arguments."""
        self.name = self.call_id = self.key = ""
        """What has been read of the next call, and of the open one's next parameter."""
        self.quoted = False
        """The parameter is text, which is said as it comes."""
        self._family = family
        self._rules = rules
        self._add = add
        self._count = 0
        written = family.written if family is not None else None
        self._of_parameters = written is not None and written.arguments == "parameters"
        """Arguments are put together from parameters."""

    def may_be_known(self, beginning: str) -> bool:
        """Whether it may become the name of a function that may be called."""
        if self._family is None or not self._family.known_names:
            return True
        beginning = beginning.strip(SPACE)
        return any(name.startswith(beginning) for name in self._rules.functions)

    def begin(self) -> bool:
        """Whether what was read is the name of a function; if so its call is open."""
        name, call_id = self.name.strip(SPACE), self.call_id
        if self._family is not None:
            match = re.fullmatch(self._family.name_pattern, name)
            if match is None:
                return False
            name = match["name"].strip(SPACE)
            call_id = call_id or match.groupdict().get("id") or ""
        if not name or not self._is_known(name):
            return False
        self.name = name
        self._count += 1
        self.open, self.said, self.call_id = True, False, ""
        if self._count == 1 or self._rules.parallel:
            self._add(Delta("", "tool_call", self._count - 1, name, call_id or self._new_id()))
        return True

    def call(self, read: ObjectCall | None) -> bool:
        """Says a whole call; False: it is none."""
        if read is None:
            return False
        self.name, self.call_id = read.name, read.call_id
        return self.call_with(read.arguments)

    def call_with(self, arguments: str | None) -> bool:
        """The same of one whose name has been read."""
        if arguments is None or not self.begin():
            return False
        self.say(arguments)
        self.close()
        return True

    def say(self, arguments: str) -> None:
        """More of the open call's arguments."""
        if arguments:
            self.said = True
            if self._count == 1 or self._rules.parallel:
                self._add(Delta(arguments, "tool_call", self._count - 1))

    def close(self) -> None:
        if not self.said:
            self.say("{}")
        elif self._of_parameters:
            self.say("}")
        self.open = False

    def begin_parameter(self, reads: Reads) -> None:
        self.say(f"{', ' if self.said else '{'}{json.dumps(self.key, ensure_ascii=False)}: ")
        self.quoted = reads == "text" or (
            reads == "value" and self._rules.functions.is_text(self.name, self.key)
        )
        if self.quoted:
            self.say('"')

    def say_text(self, text: str) -> None:
        """More of a parameter that is text."""
        self.say(json_string(text))

    def end_parameter(self, reads: Reads, text: str) -> None:
        """text: of one that is not said as it comes."""
        if self.quoted:
            self.say('"')
        elif reads == "literal":
            self.say(text.strip(SPACE) or "null")
        else:
            self.say(self._rules.functions.as_json(self.name, self.key, text))

    def _is_known(self, name: str) -> bool:
        return self._family is None or not self._family.known_names or name in self._rules.functions

    def _new_id(self) -> str:
        letters = self._family.id_letters if self._family is not None else 0
        if letters:
            return "".join(secrets.choice(_LETTERS) for _ in range(letters))
        return f"call_{secrets.token_hex(12)}"
