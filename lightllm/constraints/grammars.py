"""From the text of a constraint to llguidance's matcher, the same wherever it is made."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightllm.constraints import limits
from lightllm.constraints.deep_threads import deep_threads
from lightllm.constraints.schema_rewriting import rewritten
from lightllm.sampling_params import CONSTRAINTS, SamplingParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

os.environ["RUST_LIB_BACKTRACE"] = "0"
"""The library makes a backtrace a level of every error; with RUST_BACKTRACE set that takes seconds."""
_JSON_OPTIONS = {"whitespace_pattern": r" |\r?\n[ \t]{0,64}"}
"""One space, or a new line and its indentation: some models would write spaces for ever."""
_CALL_OPTIONS = {"whitespace_pattern": " "}
"""Of the arguments of tool calls, which nobody reads: models write them in one line."""
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Where only one text can come, the model chooses among the tokens that it can be written with, as elsewhere; the library
would choose them, and work out all of the text first, however long it is."""
KEPT_TEXTS = 256
"""Constraints whose check is remembered, and patterns whose names are."""
_KEPT_GRAMMARS = 8
"""Each may have half a megabyte, and is wanted twice within a moment: for the check and for the matcher."""
MAX_NAMES = 64
"""Of a pattern of patternProperties."""
MAX_BYTES = 400
"""Of those names, beginnings that several share counted once."""


def is_installed() -> bool:
    """Whether the package that constraints need is here."""
    return importlib.util.find_spec("llguidance") is not None


class Constraint(NamedTuple):
    name: str
    """Of the field of `SamplingParams` that holds it; "" if there is none."""
    text: str
    prefix: str = ""
    """`SamplingParams.constraint_prefix`"""


def constraint_of(params: SamplingParams) -> Constraint:
    names = ("call_grammar", *CONSTRAINTS)
    name = next((name for name in names if getattr(params, name)), "")
    return Constraint(name, getattr(params, name) if name else "", params.constraint_prefix)


@functools.cache
def bytes_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def make_matcher(tokenizer: LLTokenizer, name: str, text: str, prefix: str = "") -> LLMatcher:
    """It may be in an error state. Raises whatever the library raises for a text that it cannot read."""
    constraint = Constraint(name, text, prefix)
    return compile_threads().submit(compiled, tokenizer, constraint, grammar_of(constraint)).result()


def grammar_of(constraint: Constraint) -> str:
    """A constraint as the library reads it. Raises like `make_matcher`."""
    grammar = _grammar(constraint.name, constraint.text)
    return _behind(constraint.prefix, grammar) if constraint.prefix else grammar


def compiled(tokenizer: LLTokenizer, constraint: Constraint, grammar: str) -> LLMatcher:
    """The matcher of a constraint's `grammar_of`. To be called in one of `compile_threads`."""
    return _compiled(tokenizer, grammar, constraint.name in ("guided_json", "call_grammar"))


def _behind(prefix: str, grammar: str) -> str:
    """The prefix's grammar, whose `@body` is the other one."""
    parts = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    body = {**parts[0], "name": "body"}
    return json.dumps({"grammars": [{"lark_grammar": prefix + _NO_FORCING}, body, *parts[1:]]})


def _compiled(tokenizer: LLTokenizer, grammar: str, json_limits: bool) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    parser_limits = LLParserLimits(**(limits.JSON_PARSER_LIMITS if json_limits else limits.PARSER_LIMITS))
    return LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits)


@functools.cache
def compile_threads() -> ThreadPoolExecutor:
    """Where the library reads constraints, which it does without the GIL."""
    return deep_threads(2, "compile-constraints", nice=True)


@functools.lru_cache(_KEPT_GRAMMARS)
def _grammar(name: str, text: str) -> str:
    """As the library wants it: several grammars as JSON, the first of which is the whole."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if name == "guided_json":
        return _json_grammar(rewritten(text, _names_of))
    if name == "regular_constraint":
        (pattern,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
        return LLMatcher.grammar_from_lark(pattern["lark_grammar"] + _NO_FORCING)
    if name == "call_grammar":
        return LLMatcher.grammar_from_lark(_with_schemas_rewritten(text, _CALL_OPTIONS) + _NO_FORCING)
    lark = _with_schemas_rewritten(text) if limits.is_lark(text) else gbnf_to_lark(text)
    return LLMatcher.grammar_from_lark(lark + _NO_FORCING)


def _json_grammar(schema: str) -> str:
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
    head, mark, rest = grammar.partition('"grammars":[')
    start = json.dumps({"lark_grammar": "start: @json_schema" + _NO_FORCING})
    return f"{head}{mark}{start},{rest}"


def _with_schemas_rewritten(lark: str, options: Mapping[str, str] | None = None) -> str:
    """A grammar in Lark, each schema behind a %json in it as `rewritten` returns it. options: of objects, beside their own."""
    if limits.is_texts(lark):
        return lark
    first, *others = lark.split("%json")
    for other in others:
        schema, end = json.JSONDecoder().raw_decode(start := other.lstrip())
        if options and isinstance(schema, dict):
            schema["x-guidance"] = {**schema.get("x-guidance", {}), **options}
        first += f"%json {rewritten(json.dumps(schema), _names_of)}{start[end:]}"
    return first


@functools.lru_cache(KEPT_TEXTS)
def _names_of(pattern: str) -> list[str] | None:
    """All names that a pattern of patternProperties matches, in order; None if there are more than `MAX_NAMES`, or if that is not to be
    seen within `MAX_BYTES`. For `rewritten`, which must come to the same wherever it is done.

    The library itself is asked, byte by byte, so that the answer is what it would let an output say."""
    only = {
        "type": "object", "additionalProperties": False, "patternProperties": {pattern: {}}, "minProperties": 1,
    }  # fmt: skip
    grammar = _json_grammar(json.dumps(only))
    start = compile_threads().submit(_compiled, bytes_tokenizer(), grammar, True).result()
    if not start.consume_tokens([*b'{"']):
        return [] if not start.is_error() or "satisf" in start.get_error() else None
    names: set[str] = set()
    todo = [(start, b"")]
    for _ in range(MAX_BYTES):
        if not todo:
            return sorted(names)
        matcher, said = todo.pop()
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return None
        for byte in np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256]).tolist():
            if byte == ord('"') and not _escaped(said):
                names.add(json.loads(b'"%b"' % said))
                continue
            after = matcher.deep_copy()
            after.consume_token(byte)
            todo.append((after, said + bytes([byte])))
            if len(names) + len(todo) > MAX_NAMES:
                return None
    return None


def _escaped(said: bytes) -> bool:
    """Whether the next character is part of an escape sequence."""
    return (len(said) - len(said.rstrip(b"\\"))) % 2 == 1
