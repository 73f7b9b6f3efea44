"""Values within tool calls: where a JSON value ends, and how parameters that are written otherwise become JSON."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

SPACE = " \t\r\n"
_STRUCTURE = re.compile(r'["{}\[\]<]')
_STRING = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[\s,}\]<]")
_decoder = json.JSONDecoder(strict=False)
_MAX_PYTHON = 65536
"""Characters of a call in Python's form: it is compiled."""
_MAX_PARTS = 256
"""Of a parameter's schema that are looked at for its types."""


class JsonScanner:
    """Finds the end of one JSON value in text that comes in pieces. What is no JSON ends at the first `<` outside of a string, where no
    JSON has one."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_scalar", "_started")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = self._started = self._scalar = False

    def scan(self, text: str) -> int:
        """The index behind the value's end, -1 if it goes on. The first piece begins with the value."""
        at = 0
        if not self._started and text:
            self._started = True
            self._scalar = text[0] not in '{["'
        if self._scalar:
            end = _SCALAR_END.search(text)
            return -1 if end is None else end.start()
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_STRING if self._in_string else _STRUCTURE).search(text, at)
            if match is None:
                return -1
            at = match.end()
            sign = match[0]
            if sign == "\\":
                self._escaped = True
            elif sign == '"':
                self._in_string = not self._in_string
                if not self._in_string and not self._depth:
                    return at
            elif sign == "<":
                return match.start()
            else:
                self._depth += 1 if sign in "{[" else -1
                if self._depth <= 0:
                    return at if self._depth == 0 else match.start()
        return -1


class ParenthesisScanner:
    """Finds the bracket that closes the arguments of a call in Python's form."""

    __slots__ = ("_depth", "_escaped", "_quote")

    def __init__(self) -> None:
        self._depth = 1
        self._quote = ""
        self._escaped = False

    def scan(self, text: str) -> int:
        """The index behind the closing bracket, -1 if there is none yet."""
        for at, sign in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quote:
                if sign == "\\":
                    self._escaped = True
                elif sign == self._quote:
                    self._quote = ""
            elif sign in "\"'":
                self._quote = sign
            elif sign in "([{":
                self._depth += 1
            elif sign in ")]}":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return -1


class ObjectCall(NamedTuple):
    name: str
    arguments: str
    """JSON, as it was written."""
    call_id: str


def read_object(text: str) -> ObjectCall | None:
    """A call as one JSON object whose members have any order, maybe within another one's `function`; None if it is no call."""
    found = _members(text)
    if found is not None and "function" in found and isinstance(found["function"][0], dict):
        found = _members(found["function"][1])
    if found is None:
        return None
    name = _text_of(found, ("name", "tool_name", "function"))
    if not name:
        return None
    nothing: tuple[Any, str] = ({}, "{}")
    value = next((found[key] for key in ("arguments", "parameters") if key in found), nothing)
    return ObjectCall(name, arguments_of(*value), _text_of(found, ("id", "tool_call_id")))


def _text_of(members: Mapping[str, tuple[Any, str]], keys: tuple[str, ...]) -> str:
    """The first of these members, if it is text."""
    value = next((members[key][0] for key in keys if key in members), "")
    return value if isinstance(value, str) and is_unicode(value) else ""


def _members(text: str) -> dict[str, tuple[Any, str]] | None:
    """Key -> value and how that is written. None for what is no JSON object."""
    members: dict[str, tuple[Any, str]] = {}
    try:
        at = _space(text, 1)
        while text[at] != "}":
            key, at = _decoder.raw_decode(text, at)
            at = _space(text, at)
            if text[at] != ":":
                return None
            start = _space(text, at + 1)
            value, at = _decoder.raw_decode(text, start)
            members[key] = value, text[start:at]
            at = _space(text, at)
            if text[at] == ",":
                at = _space(text, at + 1)
            elif text[at] != "}":
                return None
    except (ValueError, IndexError, RecursionError, TypeError):
        return None
    return members


def _space(text: str, at: int) -> int:
    while text[at] in SPACE:
        at += 1
    return at


def arguments_of(value: Any, written: str) -> str:
    """Arguments as OpenAI has them: an object's text. Some models write that text as a string, or nothing."""
    if isinstance(value, str):
        return value if _is_object(value) and is_unicode(value) else written
    return "{}" if value is None else written


def _is_object(text: str) -> bool:
    try:
        return isinstance(_loads(text), dict)
    except (ValueError, RecursionError):
        return False


def json_value(written: str) -> str:
    """Arguments that are no object as they stand."""
    try:
        return arguments_of(_loads(written), written)
    except (ValueError, RecursionError):
        return written.strip() or "{}"


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def json_string(text: str) -> str:
    """What stands between a JSON string's quotes; a text's pieces are written like the whole."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class ParameterTypes:
    """Which parameters of which functions are text, as the schemas of a request say."""

    def __init__(self, functions: Mapping[str, Mapping[str, Any]]) -> None:
        """functions: name -> JSON schema of its parameters."""
        self._functions = functions
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def is_text(self, function: str, key: str) -> bool:
        """Whether its values can be nothing but text."""
        return self._of(function, key) in (frozenset(), frozenset({"string"}))

    def as_json(self, function: str, key: str, written: str) -> str:
        """A value as JSON: what its schema lets it be, else a string."""
        types = self._of(function, key)
        text = written.strip()
        if text == "None" and "null" in types:
            return "null"
        if "boolean" in types and text.lower() in ("true", "false"):
            return text.lower()
        try:
            value = _loads(text)
        except (ValueError, RecursionError):
            return _python_value(text) or json.dumps(written, ensure_ascii=False)
        fits = bool(_type_of(value) & types) or "string" not in types
        return text if fits else json.dumps(written, ensure_ascii=False)

    def _of(self, function: str, key: str) -> frozenset[str]:
        schema = self._functions.get(function) or {}
        properties = schema.get("properties")
        if not isinstance(properties, dict) or key not in properties:
            return frozenset()
        if (function, key) not in self._known:
            self._known[function, key] = schema_types(properties[key], schema)
        return self._known[function, key]


def schema_types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that a schema allows as far as that is plain to see; none if it says nothing.

    Each of its parts is looked at once: references of a client's schema may lead round in circles, and branch at each turn."""
    found: set[str] = set()
    todo, seen = [schema], set[int]()
    while todo and len(seen) < _MAX_PARTS:
        one = todo.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        types, values, reference = one.get("type"), one.get("enum"), one.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            todo.append(_referred(reference, root))
        elif isinstance(types, str):
            found.add(types)
        elif isinstance(types, list):
            found.update(name for name in types if isinstance(name, str))
        elif isinstance(values, list):
            found.update(*map(_type_of, values))
        else:
            parts = (one.get(key) for key in ("anyOf", "oneOf", "allOf"))
            todo += next((part for part in parts if isinstance(part, list)), [])[:_MAX_PARTS]
    return frozenset(found)


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    """What stands in the root schema at `#/a/b`; None if nothing does."""
    target: Any = root
    for part in reference[2:].split("/"):
        target = target.get(part) if isinstance(target, dict) else None
    return target


def _type_of(value: Any) -> frozenset[str]:
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int):
        return frozenset({"integer", "number"})
    if isinstance(value, float):
        return frozenset({"number", "integer"} if value.is_integer() else {"number"})
    return frozenset(
        {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}
    )


def python_arguments(text: str) -> str | None:
    """Python's keyword arguments, `city="Paris", days=3`, as a JSON object; None for anything but literals."""
    if len(text) > _MAX_PYTHON:
        return None
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        values = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
        if None in values:
            return None
        return _dumps(values)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _dumps(value: Any) -> str:
    """Half a character, which Python's strings can hold, stays escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if is_unicode(text) else json.dumps(value, allow_nan=False)


def is_unicode(text: str) -> bool:
    """Whether it has no half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _python_value(text: str) -> str | None:
    """An object or a list that is written as Python has it, as JSON."""
    if text[:1] not in ("{", "[") or len(text) > _MAX_PYTHON:
        return None
    try:
        return _dumps(_literal(ast.parse(text, mode="eval").body))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


_CONSTANTS = {"true": True, "false": False, "null": None}


def _literal(node: ast.expr) -> Any:
    """As `ast.literal_eval`, with JSON's names for what Python calls otherwise; models mix them."""
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values) if key}
    return ast.literal_eval(node)
