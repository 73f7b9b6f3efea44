"""An accepted schema leads to a value of it: no output comes to a place where no token may follow, none says a key twice
where the names are known, and none goes where no value ends."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from support import tokenizers
from support.constrained import NOTHING, Vocabulary
from support.random_schemas import names_are_few, random_schema, value_of

from lightllm.constraints.check import check_constraint
from lightllm.errors import InvalidParameter
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer

INTEGER = {"type": "integer"}
SIZE = {
    "type": "object",
    "properties": {"size": INTEGER},
    "required": ["size"],
    "additionalProperties": False,
}
LIST = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/list"}}
MAX_TOKENS = 300
UNFINISHED = "unfinished"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder: Path = tmp_path_factory.mktemp("byte-level")
    return Vocabulary(load_tokenizer(str(tokenizers.byte_level(folder))))


def written(vocabulary: Vocabulary, dice: random.Random, **params: Any) -> str:
    """A random output that obeys a constraint; `UNFINISHED` if it has not ended after `MAX_TOKENS`."""
    matcher = vocabulary.matchers.open(SamplingParams(**params), NOTHING)
    said = b""
    for _ in range(MAX_TOKENS):
        allowed = vocabulary.allowed(matcher)  # asserts that the matcher is in no error
        assert allowed, f"nothing may follow {said!r}"
        ends = allowed & vocabulary.eos
        closing = [i for i in allowed if vocabulary.tokens.get(i, b"") in (b'"', b"}", b"]", b":")]
        token = (
            min(ends)
            if ends
            else dice.choice(closing if closing and dice.random() < 0.3 else sorted(allowed))
        )
        assert matcher.consume_token(token)
        if token in vocabulary.eos:
            return said.decode()
        said += vocabulary.tokens[token]
    return UNFINISHED


def names_said_twice(text: str) -> list[str]:
    """Of each object in a JSON text."""
    twice: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(text, object_pairs_hook=note)
    return twice


@pytest.mark.parametrize(
    "schema",
    [
        SIZE | {"patternProperties": {"^size$": INTEGER}},
        SIZE | {"patternProperties": {"^size$": INTEGER, "^w$": INTEGER}},
        SIZE | {"properties": {"box": SIZE | {"patternProperties": {"^size$": INTEGER}}}, "required": ["box"]},
        SIZE | {"patternProperties": {"^size$": {"type": "string"}}, "required": []},
        SIZE | {"required": [], "properties": {"n": INTEGER}, "patternProperties": {"^(n|m)$": INTEGER}},
        SIZE | {"patternProperties": {"^size$": {"minimum": 0, "maximum": 5}}},
        SIZE | {"properties": {}, "patternProperties": {"^size$": INTEGER}},
        SIZE | {"properties": {f"f{i}": INTEGER for i in range(10)}, "required": ["f0"],
                "patternProperties": {"^f[0-9]$": {"maximum": 50, "minimum": 0}}},
        {"allOf": [SIZE, {"patternProperties": {"^size$": {"maximum": 9, "minimum": 0}}}]},
        {"$defs": {"one": SIZE | {"patternProperties": {"^size$": INTEGER}}}, "type": "array", "maxItems": 2,
         "items": {"$ref": "#/$defs/one"}},
        SIZE | {"patternProperties": {'^"\\\\é\n$': INTEGER}},
    ],
    ids=lambda schema: json.dumps(schema)[-70:],
)  # fmt: skip
def test_properties_that_patterns_match_too_lead_to_no_dead_end(vocabulary: Vocabulary, schema: dict) -> None:
    text = json.dumps(schema)
    finished = 0
    for seed in range(15):
        output = written(vocabulary, random.Random(seed), guided_json=text)
        if output != UNFINISHED:
            assert jsonschema_rs.is_valid(schema, value_of(output)), output
            assert not names_said_twice(output), output
            finished += 1
    assert finished > 10


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"$ref": "#/$defs/list", "$defs": {"list": LIST}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"],
         "$defs": {"b": {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}}},
        {"type": "object", "patternProperties": {"^k$": {"$ref": "#"}}, "required": ["k"]},
    ],
    ids=lambda schema: json.dumps(schema)[-70:],
)  # fmt: skip
def test_a_schema_that_no_finite_value_fits_is_refused(schema: dict) -> None:
    with pytest.raises(InvalidParameter, match="no finite value fits"):
        check_constraint(SamplingParams(guided_json=json.dumps(schema)))
    with pytest.raises(InvalidParameter, match="no finite value fits"):
        check_constraint(SamplingParams(guided_grammar=f"start: %json {json.dumps(schema)}"))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": INTEGER, "next": {"$ref": "#/$defs/list"}}, "required": ["x"]},
        {"anyOf": [INTEGER, {"$ref": "#/$defs/list"}]},
        {"type": "array", "items": {"$ref": "#/$defs/list"}},
        {"type": "object", "properties": {"x": INTEGER}, "additionalProperties": {"$ref": "#/$defs/list"}},
        {"type": "object", "properties": {"v": INTEGER, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
         "required": ["v", "next"], "additionalProperties": False},
        {"properties": {"v": {"$ref": "#"}}, "required": ["v"]},
    ],
    ids=lambda schema: json.dumps(schema)[-70:],
)  # fmt: skip
def test_outputs_stay_away_from_what_never_ends(vocabulary: Vocabulary, schema: dict) -> None:
    schema = schema | {"$defs": {"list": LIST}}
    check_constraint(SamplingParams(guided_json=json.dumps(schema)))
    outputs = [written(vocabulary, random.Random(n), guided_json=json.dumps(schema)) for n in range(15)]
    finished = [output for output in outputs if output != UNFINISHED]
    assert len(finished) > 5
    assert all(jsonschema_rs.is_valid(schema, value_of(output)) for output in finished)


def test_a_schema_within_a_grammar_leads_to_no_dead_end(vocabulary: Vocabulary) -> None:
    schema = SIZE | {"patternProperties": {"^size$": INTEGER}}
    for seed in range(10):
        output = written(
            vocabulary, random.Random(seed), guided_grammar=f'start: "it is " %json {json.dumps(schema)} "."'
        )
        assert output == UNFINISHED or json.loads(output.removeprefix("it is ").removesuffix(".")).keys() == {
            "size"
        }


def test_a_reference_to_what_is_rewritten_is_refused() -> None:
    schema = SIZE | {
        "patternProperties": {"^w$": INTEGER},
        "properties": {"size": {"$ref": "#/patternProperties/^w$"}},
    }
    with pytest.raises(InvalidParameter, match="refer to \\$defs"):
        check_constraint(SamplingParams(guided_json=json.dumps(schema)))


def test_what_is_written_once_a_name_is_bounded() -> None:
    large = {"enum": [f"{i:0100}" for i in range(200)]}
    schema = {"type": "object", "patternProperties": {"^[a-z]$": large}}
    with pytest.raises(InvalidParameter, match="too large"):
        check_constraint(SamplingParams(guided_json=json.dumps(schema)))


@pytest.mark.parametrize("count", [80, pytest.param(5000, marks=pytest.mark.slow)])
def test_accepted_schemas_lead_to_values_of_them(vocabulary: Vocabulary, count: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(count):
        dice = random.Random(number)
        schema = random_schema(dice)
        text = json.dumps(schema)
        try:
            check_constraint(SamplingParams(guided_json=text))
        except InvalidParameter:
            seen["refused"] += 1
            continue
        for _ in range(2):
            output = written(vocabulary, dice, guided_json=text)
            if output == UNFINISHED:
                seen[UNFINISHED] += 1
                continue
            assert jsonschema_rs.is_valid(schema, value_of(output)), (text, output)
            assert not names_said_twice(output) or not names_are_few(schema), (text, output)
            seen["valid"] += 1
    assert seen["valid"] > count / 2, seen
