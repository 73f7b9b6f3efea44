"""Grammars (Lark, as llguidance has it) of what a model may write: calls in its family's own form, reasoning before them.

Special tokens stand in a grammar by their ids, because the library does not take them for text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lightllm.parsers.readers import schema_types
from lightllm.parsers.table import Family, Reasoning, Written
from lightllm.sampling_params import MAX_CALL_GRAMMAR

MAX_CALLS = 64
"""Of one answer."""
_ANY = "/(?s:.+)/"
_SPACE = r"/[ \t\r\n]{1,16}/"
_NAME = re.compile(r"[\w.:/-]{1,128}")
_NOTES = (
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
)
"""Keywords of a schema that say nothing about its values."""


class Function(NamedTuple):
    """One that may be called."""

    name: str
    schema: Mapping[str, Any]
    """Of its parameters."""


class Quoter:
    """Writes texts as a grammar has them."""

    def __init__(self, special: frozenset[str], token_id: Callable[[str], int | None]) -> None:
        """special: the texts that are special tokens."""
        self._ids = {text: token for text in special if (token := token_id(text)) is not None}
        texts = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def parts(self, text: str) -> list[str]:
        """A sequence of strings and tokens."""
        parts, at = [], 0
        for match in self._pattern.finditer(text):
            parts += [quoted(text[at : match.start()])] * (match.start() > at)
            parts.append(f"<[{self._ids[match[0]]}]>")
            at = match.end()
        return parts + [quoted(text[at:])] * (len(text) > at)

    def __call__(self, text: str) -> str:
        return " ".join(self.parts(text))

    def starts_with_token(self, text: str) -> bool:
        return self._pattern.match(text) is not None


def quoted(text: str) -> str:
    """A string: written as JSON's, but that DEL must be escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def reasoning_before(reasoning: Reasoning, opened: bool, quote: Quoter, before: str = "") -> str:
    """Reasoning, which must come to its end if it is `opened`, and need not begin else; then the grammar `@body`, with the text `before`
    it. Space belongs to the reasoning's end: without reasoning the body begins at once."""
    rules, ends = [], []
    for number, end in enumerate(reasoning.end):
        if quote.starts_with_token(end):
            ends.append(f"({_ANY})? {quote(end)}")
        else:
            ends.append(f"thought{number}")
            rules.append(f"thought{number}[lazy]: {_until(end)}")
    thought = f"({' | '.join(ends)}) (space)?"
    if not opened:
        thought = f"(({' | '.join(map(quote, reasoning.begin))}) {thought})?"
    return "\n".join([f"start: {thought} {quote(before)} @body", f"space: {_SPACE}", *rules])


def calls_grammar(
    family: Family, functions: Sequence[Function], quote: Quoter, parallel: bool = True, content: str = ""
) -> str:
    """Nothing but calls of these functions, at least one. content: what may come instead. Raises `ValueError` for names that cannot
    be written, and for schemas that are too large together."""
    rules: dict[str, str] = {}
    calls = _Calls(family, quote, rules).sequence(functions, parallel)
    rules["start"] = f"{calls} | content" if content else calls
    if content:
        rules["content"] = content
    return _text(rules)


def lazy_calls_grammar(
    family: Family, functions: Sequence[Function], quote: Quoter, parallel: bool
) -> str | None:
    """Any text, but what the family's marker begins is a call of one of these functions. None for a family whose calls have no marker
    of their own at the beginning."""
    assert family.written is not None
    written = family.written
    marks = [mark for mark, way in family.states["content"].exits.items() if way.state != "content"]
    first = (written.before + written.head).lstrip()
    mark = next((mark for mark in marks if first.startswith(mark)), "")
    if not mark or family.known_names or family.headers:
        return None
    rules: dict[str, str] = {}
    calls = _Calls(family, quote, rules).sequence(functions, parallel, behind=mark)
    others = "|".join(_escaped(mark) for mark in marks if not quote.starts_with_token(mark))
    free = f"(/(?s:.*)/ & ~/(?s:.*)({others})(?s:.*)/)" if others else "/(?s:.*)/"
    rules["FREE"] = free
    if quote.starts_with_token(mark):
        rules["start"] = f"FREE | FREE? {quote(mark)} {calls}"
    else:
        rules["UNTIL"] = f"{free} {quoted(mark)}"
        rules["start"] = f"FREE | UNTIL {calls}"
    return _text(rules)


def _text(rules: Mapping[str, str]) -> str:
    order = ["start", *(name for name in rules if name != "start")]
    return "\n".join(f"{name}: {rules[name]}" for name in order)


class _Calls:
    """The rules of one grammar."""

    def __init__(self, family: Family, quote: Quoter, rules: dict[str, str]) -> None:
        assert family.written is not None
        self._written: Written = family.written
        self._quote = quote
        self._rules = rules
        self._size = 0
        """Of the schemas so far."""

    def sequence(self, functions: Sequence[Function], parallel: bool, behind: str = "") -> str:
        """behind: a marker that has been written already."""
        written, rules = self._written, self._rules
        rules["call"] = " | ".join(self._call(number, one) for number, one in enumerate(functions))
        rules["named"] = f"{self._numbered(written.head)} call"
        # one string: of two that begin alike the library only sees the longer one
        rules["next"] = f"{self._numbered(written.between + written.head)} call"
        more = f" next{{0,{MAX_CALLS - 1}}}" if parallel and not written.single else ""
        first = "named"
        before = written.before.lstrip() if behind else written.before
        if behind and before:
            before = before.removeprefix(behind)
        elif behind:
            rules["first"] = f"{self._numbered(written.head.removeprefix(behind))} call"
            first = "first"
        return f"{self._quote(before)} {first}{more} {self._quote(written.after)}".strip()

    def _call(self, number: int, function: Function) -> str:
        """From the name on."""
        if not _NAME.fullmatch(function.name):
            raise ValueError(
                f"a call of {function.name[:64]!r} cannot be demanded: letters, digits and _.:/- are possible"
            )
        written, name = self._written, f"args{number}"
        if written.arguments == "json":
            self._rules[name] = self._json(_as_object(function.schema))
        elif written.arguments == "python":
            self._keywords(
                name,
                function.schema,
                ", ",
                lambda _, key, one: f"{quoted(key + '=')} {self._json(_part(one, function.schema))}",
            )
        elif written.arguments == "bare":
            self._keywords(
                name,
                function.schema,
                ",",
                lambda rule, key, one: self._parameter(rule, key, one, function.schema),
            )
        else:
            self._parameters(name, function.schema)
        return f"{self._quote(function.name)} {self._numbered(written.middle)} {name} {self._quote(written.tail)}".strip()

    def _json(self, schema: Any) -> str:
        """Definitions stand with each parameter: what they make together is known before it is made."""
        text = json.dumps(schema)
        self._size += len(text)
        if self._size > MAX_CALL_GRAMMAR:
            raise ValueError(
                f"the tools' schemas make a grammar of more than {self._size} bytes, at most {MAX_CALL_GRAMMAR}"
            )
        return f"%json {text}"

    def _numbered(self, text: str) -> str:
        return " /[0-9]{1,4}/ ".join(map(self._quote, text.split("{number}")))

    def _parameters(self, name: str, schema: Mapping[str, Any]) -> None:
        """Parameters in the order of the schema, each once."""
        parts = []
        for number, (key, one, needed) in enumerate(_properties(schema)):
            rule = f"{name}_{number}"
            self._rules[rule] = self._parameter(rule, key, one, schema)
            parts.append(rule if needed else f"({rule})?")
        self._rules[name] = " ".join(parts) or '""'

    def _parameter(self, rule: str, key: str, one: Any, schema: Mapping[str, Any]) -> str:
        before, between, behind = self._written.parameter
        types = schema_types(one, schema)
        if types and "string" not in types and self._written.parameter_json is not None:
            before, between, behind = self._written.parameter_json
        return f"{self._quote(before + key + between)} {self._value(rule, one, schema, types, behind)}"

    def _value(
        self, rule: str, one: Any, schema: Mapping[str, Any], types: frozenset[str], behind: str
    ) -> str:
        """A value and the marker behind it."""
        if types and "string" not in types:
            return f"{self._json(_part(one, schema))} {self._quote(behind)}"
        choices = (
            one.get("enum", [one["const"]] if "const" in one else None) if isinstance(one, dict) else None
        )
        if choices:
            texts = (
                text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in choices
            )
            return f"({' | '.join(map(quoted, texts))}) {self._quote(behind)}"
        terminal = f"{rule.upper()}_TEXT"
        mark = behind.strip()
        if self._quote.starts_with_token(mark):
            self._rules[terminal] = "/(?s:.*)/"
            return f"{terminal} {self._quote(behind)}"
        self._rules[terminal] = f"(/(?s:.*)/ & ~/(?s:.*){_escaped(mark)}(?s:.*)/) {quoted(behind)}"
        return terminal

    def _keywords(
        self, name: str, schema: Mapping[str, Any], comma: str, written: Callable[[str, str, Any], str]
    ) -> None:
        """Keyword arguments, in the order of the schema, each once; the first of those that are given has no comma. written: an
        argument, by its rule's name, its key and its schema: JSON's literals are Python's, or are read as such."""
        properties = _properties(schema)
        for number, (key, one, _) in enumerate(properties):
            rule = f"{name}_{number}"
            self._rules[rule] = written(rule, key, one)
        # behind a given one; in the place where none is given yet
        given, none = f"{name}_more", f"{name}_none"
        for number in range(len(properties), -1, -1):
            if number == len(properties):
                self._rules[f"{given}{number}"] = self._rules[f"{none}{number}"] = '""'
                continue
            needed, one = properties[number][2], f"{name}_{number}"
            others = f"{given}{number + 1}"
            skip = "" if needed else f" | {given}{number + 1}"
            self._rules[f"{given}{number}"] = f"{quoted(comma)} {one} {others}{skip}"
            skip = "" if needed else f" | {none}{number + 1}"
            self._rules[f"{none}{number}"] = f"{one} {others}{skip}"
        self._rules[name] = f"{none}0"


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Name, schema and whether it must be given, of each parameter."""
    properties, required = schema.get("properties"), schema.get("required")
    known = properties if isinstance(properties, dict) else {}
    needed = [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
    return [(key, known.get(key, {}), key in needed) for key in dict.fromkeys([*known, *needed])]


def _as_object(schema: Mapping[str, Any]) -> Any:
    """Arguments are an object, also where the schema forgets to say so."""
    plain = without_notes(schema)
    return (
        plain if plain.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"} else {"type": "object", **plain}
    )


def _part(one: Any, schema: Mapping[str, Any]) -> Any:
    """The schema of one parameter, with the definitions that it may refer to."""
    plain = without_notes(one) if isinstance(one, dict) else one
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {**plain, **without_notes(definitions)} if definitions and isinstance(plain, dict) else plain


def without_notes(schema: Any) -> Any:
    """A schema without what is only told to readers: in tools that is most of it."""
    if isinstance(schema, list):
        return [without_notes(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            named = isinstance(value, dict)
            plain[key] = {name: without_notes(one) for name, one in value.items()} if named else value
        elif key in ("enum", "const", "required"):
            plain[key] = value
        elif key not in _NOTES:
            plain[key] = without_notes(value)
    return plain


def _until(mark: str) -> str:
    return f"/(?s:.*){_escaped(mark)}/"


def _escaped(text: str) -> str:
    """Within a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\n", r"\n").replace("\\\\n", r"\n")
