"""What a constraint may hold, checked before llguidance reads it.

Its users are strangers, and the library recurses on the stack of its thread (a deep enough grammar ends the process) and
has steps that no limit of its own bounds. With these limits, `PARSER_LIMITS` and a deep stack, every constraint that we could
think of is read within 0.4 s of one core and 50 MB, or refused. They are far above what ordinary ones need.
"""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

PARSER_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 150_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 3_000,
    "max_items_in_row": 300,  # a mask takes time with its square
    "max_lexer_states": 25_000,  # 0.5 to 2 KB each
    "max_grammar_size": 6_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
"""The library's own limits."""
JSON_PARSER_LIMITS = PARSER_LIMITS | {"max_items_in_row": 1_000}
"""An optional property takes about four items of a row."""

MAX_JSON_DEPTH = 64
MAX_REFERENCES = 200
MAX_REFERENCE_DEPTH = 2000
"""Different $ref times the depth: they are followed on the stack."""
MAX_RULES = 200
"""Of a grammar in Lark."""
MAX_GBNF_RULES = 150
"""They are translated in Python, in time with their square."""
MAX_BRACKETS = 1500
MAX_INTERSECTIONS = 8
"""Of terminals (&), and of patterns in merged schemas: their product is built."""
MAX_REPETITIONS = {"regular_constraint": 300, "guided_grammar": 2000, "guided_json": 1000}
"""Signs that repeat (* + ? {): time goes with their square."""
MAX_ESCAPES = {"regular_constraint": 500, "guided_grammar": 2000, "guided_json": 1000}
"""Backslashes: each may stand for thousands of characters. Of a schema, those of its patterns count."""
MAX_PATTERN_CHARACTERS = 1 << 14
"""Of all patterns of a schema together."""
MAX_PATTERNS = 100
MAX_PATTERN_PROPERTIES = 20
"""Each is compared with each."""
MAX_MULTIPLE = 10_000
"""Sum of the digits' values of all multipleOf: an automaton of so many states is built."""
LEAST_NUMBER = -(2.0**63)
"""Numbers of a schema are above it: where an integer has this value, the library recurses without end."""
MAX_NOT_ASCII = 8000
OPTIONS = ("coerce_one_of", "lenient")
"""Of a schema's x-guidance."""

_RULE = re.compile(r"(?m)^[ \t]*[!?_a-zA-Z][\w.!?-]*[^\n\"/]{0,80}?(?:::=|:)")
_TEXTS = re.compile(r'start: "(?:[^"\\\n]|\\.)*"(?: \| "(?:[^"\\\n]|\\.)*")*')
"""One of several texts, as the Http Server writes it: whatever they hold, they are only texts."""
_START = re.compile(r"start\s*:(?!:=)")
_OPTIONS_LINE = re.compile(r"(?m)^[ \t]*%llguidance\b(.*)$")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_REMARKS = frozenset(
    ("$ref", "description", "title", "default", "examples", "example", "$comment", "deprecated", "readOnly",
     "writeOnly", "$id", "$schema", "$defs", "definitions")
)  # fmt: skip
"""Keywords that do not have to be merged with those beside them."""


def find_violation(name: str, text: str) -> str:
    """Why the constraint `text`, of the field `name` of `SamplingParams`, is not given to the library; "" if it is. At most
    20 ms for texts within their length."""
    return next(_VIOLATIONS[name](text), "")


def is_lark(grammar: str) -> bool:
    """Else it is GBNF. A grammar in Lark has a rule `start`."""
    lines = (line.lstrip() for line in grammar.split("\n"))
    return any(line.startswith("%llguidance") or _START.match(line) for line in lines)


def is_texts(grammar: str) -> bool:
    """Whether it is one of several texts, as the Http Server writes a choice."""
    return _TEXTS.fullmatch(grammar) is not None


def _regex(text: str) -> Iterator[str]:
    yield from _regex_parts("regular_constraint", [text])


def _regex_parts(name: str, texts: list[str]) -> Iterator[str]:
    if sum(text.count(sign) for text in texts for sign in "*+?{") > MAX_REPETITIONS[name]:
        yield f"more than {MAX_REPETITIONS[name]} repetitions (* + ? {{)"
    if sum(text.count("\\") for text in texts) > MAX_ESCAPES[name]:
        yield f"more than {MAX_ESCAPES[name]} backslashes"


def _grammar(text: str) -> Iterator[str]:
    if is_texts(text):
        return
    limit = MAX_RULES if is_lark(text) else MAX_GBNF_RULES
    if text.count(":") > 4 * limit or len(_RULE.findall(text)) > limit:
        yield f"more than {limit} rules"
    if sum(map(text.count, "([{")) > MAX_BRACKETS:
        yield f"more than {MAX_BRACKETS} opening brackets"
    if text.count("&") > MAX_INTERSECTIONS:
        yield f"more than {MAX_INTERSECTIONS} intersections (&)"
    yield from _regex_parts("guided_grammar", [text])
    if len(text) - len(text.encode("ascii", "ignore")) > MAX_NOT_ASCII:
        yield f"more than {MAX_NOT_ASCII} characters beyond ASCII"
    if any(options.strip() != "{}" for options in _OPTIONS_LINE.findall(text)):
        yield "%llguidance takes no options here"
    yield from _calls(text)


def _calls(text: str) -> Iterator[str]:
    """Of a grammar what its schemas may not hold: the rest of a grammar of tool calls is the Http Server's own."""
    schemas = []
    for part in text.split("%json")[1:]:
        try:
            schemas.append(_decoder.raw_decode(part.lstrip(" \t\r\n"))[0])
        except (ValueError, RecursionError):
            yield "what follows %json is no JSON"
    yield from _schemas(schemas)


def _json(text: str) -> Iterator[str]:
    try:
        schema = _decoder.decode(text)
    except ValueError as error:
        yield f"not JSON: {error}"
        return
    except RecursionError:
        yield f"nested deeper than {MAX_JSON_DEPTH}"
        return
    if not isinstance(schema, dict):
        yield "a schema is a JSON object"
    yield from _schemas([schema])


def _schemas(schemas: list[Any]) -> Iterator[str]:
    patterns: list[str] = []
    references: set[str] = set()
    formats = keys = merged = multiples = deepest = 0
    for node, depth in _nodes(schemas):
        deepest = max(deepest, depth)
        if depth > MAX_JSON_DEPTH:
            yield f"nested deeper than {MAX_JSON_DEPTH}"
        if any(_too_low(value) for value in (node.values() if isinstance(node, dict) else node)):
            yield "a number of -2^63 or below"
        if not isinstance(node, dict):
            continue
        options = node.get("x-guidance", {})
        if not isinstance(options, dict) or not options.keys() <= set(OPTIONS):
            yield f"x-guidance takes {' and '.join(OPTIONS)} only"
        if isinstance(pattern := node.get("pattern"), str):
            patterns.append(pattern)
        if isinstance(more := node.get("patternProperties"), dict):
            patterns += more
            keys += len(more)
        formats += "format" in node
        multiples += _digits(node.get("multipleOf"))
        if isinstance(parts := node.get("allOf"), list):
            merged += len(parts)
        references.update(str(node[key]) for key in _REFERENCES if key in node)
        merged += "$ref" in node and not node.keys() <= _REMARKS
        merged += bool(node.keys() & {"anyOf", "oneOf"}) and not node.keys() <= _REMARKS | {"anyOf", "oneOf"}
    if len(references) > MAX_REFERENCES or len(references) * deepest > MAX_REFERENCE_DEPTH:
        yield (
            f"more than {MAX_REFERENCES} different $ref, or more than {MAX_REFERENCE_DEPTH} of them times the depth"
        )
    if multiples > MAX_MULTIPLE:
        yield f"the digits of multipleOf add up to more than {MAX_MULTIPLE}"
    if keys > MAX_PATTERN_PROPERTIES:
        yield f"more than {MAX_PATTERN_PROPERTIES} patternProperties"
    if len(patterns) + formats > MAX_PATTERNS:
        yield f"more than {MAX_PATTERNS} patterns and formats"
    if min(len(patterns) + formats, merged + 1) > MAX_INTERSECTIONS:
        yield f"more than {MAX_INTERSECTIONS} patterns and formats in schemas that have to be merged"
    if sum(map(len, patterns)) > MAX_PATTERN_CHARACTERS:
        yield f"patterns of more than {MAX_PATTERN_CHARACTERS} characters"
    yield from _regex_parts("guided_json", patterns)


def _nodes(roots: list[Any]) -> Iterator[tuple[Any, int]]:
    """Every object and list within, with its depth."""
    todo = [(root, 1) for root in roots]
    while todo:
        node, depth = todo.pop()
        yield node, depth
        values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        todo += [(value, depth + 1) for value in values if isinstance(value, dict | list)]


def _too_low(value: Any) -> bool:
    """Compared as float64, which the library takes it for: a little above is rounded down to the limit."""
    if not isinstance(value, int | float):
        return False
    try:
        return float(value) <= LEAST_NUMBER
    except OverflowError:
        return value < 0


def _digits(number: Any) -> int:
    """Of a number the digits alone: 12 for 0.0012 and for 1.2e9."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return 0
    digits = decimal.Decimal(repr(number)).normalize().as_tuple().digits
    return int("".join(map(str, digits[:9])) or 0)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_VIOLATIONS: dict[str, Callable[[str], Iterator[str]]] = {
    "regular_constraint": _regex,
    "guided_grammar": _grammar,
    "guided_json": _json,
    "call_grammar": _calls,
}
