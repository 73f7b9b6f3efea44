"""The one parser: runs the table of a family of models over an answer, whole or piece by piece.

What comes out does not depend on how the text is cut: a state consumes text up to a marker that is certain, and holds back only what
may be the beginning of one, with the white space before it, which belongs to the marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lightllm.parsers.bare_objects import BareObject
from lightllm.parsers.calls import Calls, Rules
from lightllm.parsers.compiled import Node, Table
from lightllm.parsers.deltas import Delta
from lightllm.parsers.readers import (
    SPACE,
    JsonScanner,
    ParenthesisScanner,
    json_value,
    python_arguments,
    read_object,
)
from lightllm.parsers.table import GIVE_BACK, Reads, To
from lightllm.parsers.terminals import without_space

MAX_NAME = 256
"""Characters of a function's name, a call's id or a parameter's name: what is longer is none."""
_PIECE = 1024
"""Characters that are looked at together: behind each of many markers that lead nowhere, all of them are looked at again."""
_MARKED: frozenset[Reads] = frozenset({"content", "reasoning", "raw"})
"""States whose text is passed on as it comes."""
_VALUES: frozenset[Reads] = frozenset({"value", "text", "literal"})


class Parser:
    """A `DeltaParser`."""

    def __init__(self, table: Table, start: str, rules: Rules) -> None:
        """start: the state of the answer's beginning."""
        self._nodes = table.nodes
        self._hidden = table.hidden
        self._family = table.family
        self._rules = rules
        self._node = table.nodes[start]
        self._buffer = ""
        """Text that is not consumed yet."""
        self._pushed = 0
        self._out: list[Delta] = []
        self._fresh = False
        """White space that comes next belongs to the marker before it."""
        self._lead = self._raw = ""
        """What was read for a call that has not begun: the marker, with its white space; and all of it."""
        self._text = ""
        """What the present state has read of a name, a key or a value."""
        self._begun = False
        """The parameter's value has begun."""
        self._scanner: JsonScanner | ParenthesisScanner | None = None
        self._bare: BareObject | None = None
        self._streams = False
        """The JSON value is passed on as it comes."""
        self._span_start = 0
        self.spans: list[tuple[int, int]] = []
        self._calls = Calls(table.family, rules, self._add)

    def push(self, text: str) -> list[Delta]:
        if len(text) <= _PIECE:
            return self._push(text)
        return [d for at in range(0, len(text), _PIECE) for d in self._push(text[at : at + _PIECE])]

    def _push(self, text: str) -> list[Delta]:
        self._pushed += len(text)
        node = self._node
        if node.reads == "content" and not self._buffer and not self._fresh and not node.terminals.texts:
            return [Delta(text)]
        self._buffer += text
        return self._run(final=False)

    def end(self) -> list[Delta]:
        deltas = self._run(final=True)
        self._finish()
        return [*deltas, *self._taken()]

    def _run(self, final: bool) -> list[Delta]:
        while self._buffer and _READERS[self._node.reads](self, final):
            pass
        return self._taken()

    def _taken(self) -> list[Delta]:
        out, self._out = self._out, []
        return out

    def _add(self, delta: Delta) -> None:
        """Neighbours of a kind become one."""
        last = self._out[-1] if self._out else None
        if last is not None and (last.kind, last.index) == (delta.kind, delta.index):
            self._out[-1] = Delta(last.text + delta.text, last.kind, last.index, last.name, last.call_id)
        else:
            self._out.append(delta)

    def _say(self, text: str) -> None:
        """Text of the present state."""
        reads = self._node.reads
        if reads == "raw":
            self._calls.say(text)
        elif text and (reads != "reasoning" or self._rules.reasoning != "none"):
            apart = reads == "reasoning" and self._rules.reasoning == "apart"
            self._add(Delta(text, "reasoning" if apart else "content"))

    def _content(self, text: str) -> None:
        """Content that was held for something else."""
        for token in self._hidden:
            text = text.replace(token, "")
        if self._fresh:
            text = text.lstrip(SPACE)
            self._fresh = not text
        if text:
            self._add(Delta(text))

    def _follow(self, marker: str, way: To) -> bool:
        """Goes where a marker leads."""
        if "open" in way.does:
            if not self._calls.begin():
                return self._give_back()
            self._forget()
        if "close" in way.does:
            self._calls.close()
            self._forget()
        if "keep" in way.does:
            self._buffer = marker + self._buffer
            self._raw = self._raw[: len(self._raw) - len(marker)]
        if "done" in way.does:
            self._forget()
        before, node = self._node, self._nodes[way.state]
        if node.reads in _MARKED or before.reads == "reasoning":
            shown = self._rules.reasoning == "content" and "reasoning" in (before.reads, node.reads)
            if shown:
                self._content(self._raw)
            self._forget()
            self._fresh = not shown
        if before.reads == "reasoning":
            self.spans.append((self._span_start, self._pushed - len(self._buffer)))
        self._enter(node)
        return True

    def _enter(self, node: Node) -> None:
        self._node = node
        self._scanner = self._bare = None
        if node.reads == "reasoning":
            self._span_start = self._pushed - len(self._buffer)
        elif node.reads in _VALUES:
            self._begun = False
            self._calls.begin_parameter(node.reads)

    def _forget(self) -> None:
        """What was read for a call will not be given back."""
        self._raw = self._lead = ""
        self._fresh = True

    def _give_back(self) -> bool:
        """What was read for a call is content: its marker as it is; behind it there may be others."""
        lead = self._lead if self._raw.startswith(self._lead) else ""
        self._buffer = self._raw[len(lead) :] + self._buffer
        self._raw = self._lead = self._text = ""
        self._content(lead)
        self._enter(self._nodes["content"])
        return True

    def _give_back_all(self) -> bool:
        """The same without another look at it: a long text would be read again and again."""
        raw, self._raw, self._lead, self._text = self._raw, "", "", ""
        self._content(raw)
        self._enter(self._nodes["content"])
        return True

    def _finish(self) -> None:
        """No more text comes."""
        reads, calls = self._node.reads, self._calls
        if reads == "reasoning":
            self.spans.append((self._span_start, self._pushed))
        if not calls.open:
            self._content(self._raw + self._buffer)
        elif reads in ("gap", "skip", "key", "name") or (reads == "raw" and not calls.said):
            calls.close()
        elif reads in _VALUES and not calls.quoted:
            calls.say(self._text)

    # -- readers: each takes what it can of the text, and says whether there is more to do

    def _read_text(self, final: bool) -> bool:
        """content, reasoning, raw"""
        node = self._node
        if self._fresh:
            self._buffer = self._buffer.lstrip(SPACE)
            if not self._buffer:
                return False
            self._fresh = False
        text = self._buffer
        absorbs = bool(node.exits) and (node.reads != "reasoning" or self._rules.reasoning != "content")
        match = node.terminals.find(text)
        if match is None:
            cut = len(text) - (0 if final else node.terminals.held(text))
            if absorbs and not final:
                cut = without_space(text[:cut])
            self._say(text[:cut])
            self._buffer = text[cut:]
            return False
        before, marker = text[: match.start()], match[0]
        self._buffer = text[match.end() :]
        if marker not in node.exits:
            self._say(before)  # behind it there is a special token that is no marker
            return True
        cut = without_space(before) if absorbs else len(before)
        self._say(before[:cut])
        self._raw = self._lead = before[cut:] + marker
        return self._follow(marker, node.exits[marker])

    def _read_gap(self, final: bool) -> bool:
        node = self._node
        text = self._buffer.lstrip(SPACE)
        self._raw += self._buffer[: len(self._buffer) - len(text)]
        self._buffer = text
        if not text:
            return False
        match = node.terminals.at_start(text)
        if match is not None:
            self._buffer = text[match.end() :]
            self._raw += match[0]
            return self._follow(match[0], node.exits[match[0]])
        if not final and node.terminals.may_begin(text):
            return False
        if node.otherwise == GIVE_BACK:
            return self._give_back()
        return self._go_otherwise(self._nodes[node.otherwise])

    def _go_otherwise(self, node: Node) -> bool:
        if node.reads == "object":
            start = self._raw.index("{")
            self._buffer, self._raw = self._raw[start:] + self._buffer, self._raw[:start]
        elif node.reads in _MARKED:
            if self._raw.strip(SPACE):
                return self._give_back()
            self._buffer, self._raw = self._raw + self._buffer, ""
        self._enter(node)
        return True

    def _read_until(self, final: bool) -> bool:
        """name, call_id, key, header: up to the marker; skip: nothing of it is kept."""
        node, calls = self._node, self._calls
        match = node.terminals.find(self._buffer)
        end = match.start() if match else len(self._buffer)
        if match is None and not final:
            end -= node.terminals.held(self._buffer)
        text = self._buffer[:end]
        if node.reads != "skip":
            before, self._text = self._text, self._text + text
            unknown = node.reads == "name" and not calls.may_be_known(self._text)
            if unknown or len(self._text) > MAX_NAME:
                return self._no_name(before)
        self._raw += text
        self._buffer = self._buffer[end:]
        if match is None:
            return False
        self._buffer = self._buffer[len(match[0]) :]
        self._raw += match[0]
        read, self._text = self._text, ""
        if node.reads == "header":
            return self._follow_header(read)
        if node.reads == "name":
            calls.name = read
        elif node.reads == "call_id":
            calls.call_id = read.strip(SPACE)
        elif node.reads == "key":
            calls.key = read.strip(SPACE)
        return self._follow(match[0], node.exits[match[0]])

    def _no_name(self, before: str) -> bool:
        """before: what was read of it earlier."""
        if not self._calls.open:
            return self._give_back()
        self._buffer, self._text = before + self._buffer, ""
        self._calls.close()  # a parameter without end: the call is what it is so far
        self._raw = self._lead = ""
        self._enter(self._nodes["content"])
        return True

    def _follow_header(self, header: str) -> bool:
        assert self._family is not None
        for pattern, state in self._family.headers:
            match = re.search(pattern, header)
            if match is not None:
                self._calls.name = match.groupdict().get("name") or ""
                return self._follow("", To(state, ("open",) if self._calls.name else ()))
        return self._give_back()

    def _read_json(self, final: bool) -> bool:
        """An object is passed on as it comes, everything else when it is known."""
        if self._scanner is None:
            self._buffer = self._buffer.lstrip(SPACE)
            if not self._buffer:
                return False
            self._scanner = JsonScanner()
            self._streams = self._buffer[0] == "{"
        piece, ended = self._scanned()
        if self._streams:
            self._calls.say(piece)
        else:
            self._text += piece
        if not ended:
            return False
        if not self._streams:
            text, self._text = self._text, ""
            self._calls.say(json_value(text))
        return self._follow("", self._node.then)

    def _read_bare(self, final: bool) -> bool:
        """Passed on as it comes, as JSON."""
        assert self._family is not None
        self._bare = self._bare or BareObject(self._family.text_quote)
        arguments, behind = self._bare.take(self._buffer)
        self._buffer = behind or ""
        self._calls.say(arguments)
        return behind is not None and self._follow("", self._node.then)

    def _read_object(self, final: bool) -> bool:
        """A call whose members have any order: known when it has ended."""
        text = self._whole(JsonScanner)
        if text is None:
            return False
        return self._called(self._calls.call(read_object(text)))

    def _read_python(self, final: bool) -> bool:
        text = self._whole(ParenthesisScanner)
        if text is None:
            return False
        return self._called(self._calls.call_with(python_arguments(text[:-1])))

    def _called(self, was_call: bool) -> bool:
        if was_call:
            self._forget()
        return self._follow("", self._node.then) if was_call else self._give_back_all()

    def _scanned(self) -> tuple[str, bool]:
        """More of a value, and whether that is its end."""
        assert self._scanner is not None
        end = self._scanner.scan(self._buffer)
        piece = self._buffer if end < 0 else self._buffer[:end]
        self._buffer = self._buffer[len(piece) :]
        return piece, end >= 0

    def _whole(self, kind: type[JsonScanner | ParenthesisScanner]) -> str | None:
        """The text of a whole value, when it has ended."""
        if self._scanner is None:
            self._scanner = kind()
        piece, ended = self._scanned()
        self._raw += piece
        self._text += piece
        if not ended:
            return None
        text, self._text = self._text, ""
        return text

    def _read_value(self, final: bool) -> bool:
        """A text is passed on as it comes."""
        node, calls = self._node, self._calls
        if not self._begun:
            self._begun = True
            if node.newline and self._buffer[0] == "\n":
                self._buffer = self._buffer[1:]
        text = self._buffer
        match = node.terminals.find(text)
        end = match.start() if match else len(text)
        if match is None and not final:
            end -= node.terminals.held(text)
        self._buffer = text[end:]
        if calls.quoted:
            calls.say_text(text[:end])
        else:
            self._text += text[:end]
        if match is None:
            return False
        self._buffer = self._buffer[len(match[0]) :]
        value, self._text = self._text, ""
        calls.end_parameter(node.reads, value)
        return self._follow(match[0], node.exits[match[0]])


_READERS: dict[Reads, Callable[[Parser, bool], bool]] = {
    **dict.fromkeys(_MARKED, Parser._read_text),
    "gap": Parser._read_gap,
    **dict.fromkeys(("skip", "name", "call_id", "key", "header"), Parser._read_until),
    "json": Parser._read_json,
    "bare": Parser._read_bare,
    "object": Parser._read_object,
    "python": Parser._read_python,
    **dict.fromkeys(_VALUES, Parser._read_value),
}
