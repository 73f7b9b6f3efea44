"""Demanded calls: the grammar of a family's form takes what the family writes, and whatever it lets through is read as calls that fit
their schemas."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from llguidance import LLMatcher
from support.random_schemas import names_are_few, random_schema
from support.tool_outputs import WEATHER

from lightllm.constraints.check import check_constraint
from lightllm.constraints.grammars import bytes_tokenizer, make_matcher
from lightllm.errors import InvalidParameter
from lightllm.parsers.call_grammar import (
    Function,
    Quoter,
    calls_grammar,
    lazy_calls_grammar,
    reasoning_before,
)
from lightllm.parsers.chat_format import ChatFormat, Wishes
from lightllm.parsers.families import FAMILIES, JSON_CALLS
from lightllm.parsers.readers import ParameterTypes
from lightllm.parsers.reasoning import REASONINGS
from lightllm.parsers.table import Family, Reasoning
from lightllm.parsers.writing import WrittenCall, write_calls
from lightllm.sampling_params import SamplingParams

QUOTE = Quoter(frozenset(), lambda text: None)
FUNCTIONS = (Function("get_weather", WEATHER), Function("get", {}))
ALL = (*FAMILIES, JSON_CALLS)
ONE = [WrittenCall("get_weather", {"city": "Par<is\n🌦"})]
TWO = [
    WrittenCall("get_weather", {"city": "Paris", "days": 3, "where": {"lat": 1.5}}),
    WrittenCall("get", {}),
]


def takes(matcher: LLMatcher, text: str) -> bool:
    data = text.encode()
    copy = matcher.deep_copy()
    return copy.try_consume_tokens([*data]) == len(data) and copy.is_accepting()


def matcher_of(grammar: str, prefix: str = "") -> LLMatcher:
    matcher = make_matcher(bytes_tokenizer(), "call_grammar", grammar, prefix)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_what_a_family_writes_is_let_through(family: Family) -> None:
    several, single = (
        matcher_of(calls_grammar(family, FUNCTIONS, QUOTE, parallel)) for parallel in (True, False)
    )
    one, two = write_calls(family, ONE), write_calls(family, TWO)
    assert takes(several, one) and takes(single, one) and not takes(single, two) and not takes(several, "No.")
    assert takes(several, two) or family.name == "harmony"
    lazy = lazy_calls_grammar(family, FUNCTIONS, QUOTE, True)
    if lazy is not None:
        assert takes(matcher_of(lazy), "I look. " + two.lstrip()) and takes(matcher_of(lazy), "No.")
        assert not takes(matcher_of(lazy), "I look. " + two.lstrip().replace("get", "other"))
    assert takes(matcher_of(calls_grammar(family, FUNCTIONS, QUOTE, True, '"No."')), "No.")


@pytest.mark.parametrize("reasoning", REASONINGS, ids=lambda one: one.name)
def test_reasoning_may_come_first_or_must_end(reasoning: Reasoning) -> None:
    grammar = calls_grammar(JSON_CALLS, FUNCTIONS, QUOTE)
    call, end = write_calls(JSON_CALLS, ONE), f"Hm <x{reasoning.end[0]}\n\n"
    free = matcher_of(grammar, reasoning_before(reasoning, False, QUOTE))
    opened = matcher_of(grammar, reasoning_before(reasoning, True, QUOTE))
    assert takes(free, call) and takes(free, reasoning.begin[0] + end + call)
    assert takes(opened, end + call) and not takes(opened, call)
    assert not takes(free, "\n" + call)  # it would be content


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_definitions_that_many_parameters_share_make_no_huge_grammar(family: Family) -> None:
    schema = {
        "properties": {f"p{number}": {"type": "integer"} for number in range(40)},
        "$defs": {"x": {"const": "x" * 20_000}},
    }
    if family.written is not None and family.written.arguments == "json":  # they stand there once
        schema["$defs"]["x"]["const"] *= 30
    with pytest.raises(ValueError, match="at most 524288"):
        calls_grammar(family, [Function("f", schema)], QUOTE)


def test_what_looks_like_a_token_in_a_schema_is_text() -> None:
    quote = Quoter(frozenset({"<tool_call>"}), {"<tool_call>": 7}.get)
    schema = {"properties": {"a<[1]>": {"enum": ["<[7]>", 'a/"<[8]>']}}, "required": ["a<[1]>"]}
    for family in ALL:
        check_constraint(SamplingParams(call_grammar=calls_grammar(family, [Function("f", schema)], quote)))


def test_special_tokens_stand_by_their_ids() -> None:
    quote = Quoter(frozenset({"<|x|>", "<|xy|>", "<|gone|>"}), {"<|x|>": 7, "<|xy|>": 8}.get)
    assert quote('a<|xy|>"<|x|><|gone|>') == r'"a" <[8]> "\"" <[7]> "<|gone|>"'


def walk(matcher: LLMatcher, dice: random.Random, marks: list[str]) -> str | None:
    """What a model could write, at random; markers are tried often, or no text would end. None: it did not end."""
    said = b""
    while len(said) < 3000:
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        assert not matcher.is_error(), matcher.get_error()
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256]).tolist()
        if matcher.is_accepting() and (not allowed or dice.random() < 0.3):
            return said.decode()
        data = dice.choice(marks).encode()
        if dice.random() > 0.5 or matcher.deep_copy().try_consume_tokens([*data]) < len(data):
            plain = [
                byte
                for byte in allowed
                if byte in b'"}],0123456789abct-' or byte < 127 and dice.random() < 0.02
            ]
            data = bytes([dice.choice(plain or allowed)])
        assert matcher.consume_tokens([*data])
        said += data
    return None


def schema_of(dice: random.Random) -> dict[str, Any]:
    """Of values whose texts are too short for a marker, which would end a parameter of JSON."""
    while not names_are_few(schema := random_schema(dice)):
        pass
    return schema


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_whatever_is_let_through_is_calls_that_fit(family: Family, seed: int) -> None:
    dice = random.Random(f"{family.name}{seed}")
    schemas: dict[str, Any] = {
        f"f{number}": {
            "type": "object", "properties": {"a": schema_of(dice), "b": {"type": "string"}, "c": {"type": "integer"}},
            "required": ["c"], "additionalProperties": False,
        }
        for number in range(2)
    }  # fmt: skip
    for schema in schemas.values():  # definitions stand at the root
        definitions = schema["properties"]["a"].pop("$defs", None)
        schema |= {"$defs": definitions} if definitions else {}
    functions = [Function(name, schema) for name, schema in schemas.items()]
    grammar = calls_grammar(family, functions, QUOTE)
    try:
        check_constraint(SamplingParams(call_grammar=grammar))
    except InvalidParameter:
        return  # schemas that nothing fits
    raw = any(
        state.reads == "raw" for state in family.states.values()
    )  # its markers are special tokens, and no text
    marks = [
        "}",
        *sorted(
            mark for state in family.states.values() for mark in state.exits if len(mark) > 2 and not raw
        ),
    ]
    text = walk(matcher_of(grammar), dice, marks)
    if text is None:
        return
    types = ParameterTypes(schemas)
    parser = ChatFormat(family).maker(Wishes("", types, forced=True)).make()
    deltas = [*parser.push(text), *parser.end()]
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        assert delta.kind == "tool_call" or not delta.text.strip(), text
        calls.setdefault(delta.index, [delta.name, ""])[1] += delta.text
    assert calls
    for name, arguments in calls.values():
        value = json.loads(arguments)
        if family.written is not None and family.written.arguments == "json":
            assert jsonschema_rs.is_valid(schemas[name], value), (text, value)
        assert type(value["c"]) is int
