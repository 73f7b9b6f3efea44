"""Values that llguidance alone would let through, and readers of JSON or a validator would not."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from support import tokenizers
from support.constrained import NOTHING, Vocabulary

from lightllm.constraints.exponents import ExponentPlace, ExponentTokens
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder: Path = tmp_path_factory.mktemp("byte-level")
    return Vocabulary(load_tokenizer(str(tokenizers.byte_level(folder))))


@pytest.fixture(scope="module")
def can_say(vocabulary: Vocabulary) -> Callable[[dict[str, Any], str], bool]:
    """Whether an output under a schema can be this text: each of its bytes is in the mask, and it may end behind it."""

    def whether(schema: dict[str, Any], text: str) -> bool:
        matcher = vocabulary.matchers.open(SamplingParams(guided_json=json.dumps(schema)), NOTHING)
        for token in vocabulary.encode(text.encode()):
            if token not in vocabulary.allowed(matcher):
                return False
            matcher.consume_token(token)
        return bool(vocabulary.allowed(matcher) & vocabulary.eos)

    return whether


FORMATS = {
    "date": (["2024-02-29", "2000-02-29", "1999-12-31", "0001-01-01"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01"]),
    "time": (["23:59:59Z", "00:00:00.125+05:30"], ["23:59:60Z", "12:00:60Z", "24:00:00Z", "12:00:00"]),
    "date-time": (["2024-02-29T12:00:00Z"], ["2023-02-29T12:00:00Z", "2024-02-29T12:00:60+01:00", "2024-02-29 12:00:00Z"]),
    "email": (["a@b", "first.last+tag@mail.example.co.uk", f"{'a' * 64}@b.c"], [f"{'a' * 65}@b.c", f"a@{'b' * 64}.c", "a@ab--c.d", "a@"]),
    "hostname": (["a", "www.example.com", "a--b", "x-1.y"], [f"{'a' * 64}.b", "ab--c", "xn--a", "-a", ".".join(["a" * 49] * 6)]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("beside", [{}, {"pattern": "^[^ ]*$"}, {"maxLength": 300}], ids=str)
def test_formats_are_what_a_validator_takes(
    can_say: Callable[..., bool], name: str, beside: dict[str, Any]
) -> None:
    schema = {"type": "string", "format": name, **beside}
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    for text in FORMATS[name][0]:
        assert can_say(schema, json.dumps(text)) and validator.is_valid(text), text
    for text in FORMATS[name][1]:
        assert not can_say(schema, json.dumps(text)), text


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.25", "0.000001"], ["0", "0.0", "0.75"]),
        ({"exclusiveMinimum": 3, "exclusiveMaximum": 3.5}, ["3.25"], ["3", "3.0", "3.5"]),
        ({"exclusiveMaximum": 0, "minimum": -0.5}, ["-0.5", "-0.25"], ["0", "-0"]),
        ({"exclusiveMaximum": -3, "exclusiveMinimum": -3.5}, ["-3.25"], ["-3", "-3.0", "-3.5"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-13}, ["0.0000000000001"], ["0"]),
        ({"exclusiveMinimum": 0}, ["0.1", "7"], ["0"]),
    ],
)
def test_an_excluded_bound_is_excluded(
    can_say: Callable[..., bool], schema: dict[str, Any], yes: list[str], no: list[str]
) -> None:
    for text in yes + no:
        assert can_say({"type": "number"} | schema, text) is (text in yes), text


@pytest.mark.parametrize("pattern", [r"^\sx$", r"^[\s_]x$", r"^(\s|y)x$", r"^[^a\]]?\sx$"])
def test_white_space_of_a_pattern_is_what_ecma_and_python_mean(
    can_say: Callable[..., bool], pattern: str
) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert can_say(schema, '" x"') and can_say(schema, '"\\tx"')
    assert not can_say(schema, '"\x85x"')


def test_what_is_no_white_space(can_say: Callable[..., bool]) -> None:
    schema = {"type": "string", "pattern": r"^\S$"}
    assert can_say(schema, '"x"') and can_say(schema, '"\\\\"') and can_say(schema, '"é"')
    assert not can_say(schema, '"\x85"') and not can_say(schema, '"\ufeff"') and not can_say(schema, '" "')


@pytest.mark.parametrize("text", ["1e99", "-1.5E-99", "0e0", "12.5e+07", "123456"])
def test_numbers_have_exponents(can_say: Callable[..., bool], text: str) -> None:
    assert can_say({"type": "number"}, text)


@pytest.mark.parametrize("text", ["1e999", "1e100", "-1.5E-100", "2e+000"])
def test_no_exponent_makes_a_number_infinite(can_say: Callable[..., bool], text: str) -> None:
    assert not can_say({"type": "number"}, text)
    assert not can_say({"type": "array", "items": {}}, f"[0, {text}]")
    assert not can_say({"type": "object"}, f'{{"1e5": {text}}}')


def test_a_string_may_hold_any_exponent(can_say: Callable[..., bool]) -> None:
    for text in ('"1e999"', '"\\"1e999"', '"\\\\1e9999"'):
        assert can_say({"type": "string"}, text)
    assert can_say({"type": "object"}, '{"1e999": 1e9, "x": "1e1000"}')


def test_tokens_that_hold_an_exponent_count_as_their_bytes() -> None:
    """However a text is cut, its place is the same."""
    dice = random.Random(1)
    for _ in range(300):
        text = "".join(dice.choice(string.digits + 'eE+-."\\ ,[') for _ in range(20)).encode()
        whole, parts = ExponentPlace(), ExponentPlace()
        whole.push(text)
        cut = sorted(dice.sample(range(20), 3))
        for start, end in zip([0, *cut], [*cut, 20], strict=True):
            parts.push(text[start:end])
        assert vars(whole) == vars(parts), text


def test_a_vocabulary_with_long_tokens_is_held_to_it() -> None:
    tokens = [
        b"1",
        b"1e5",
        b"e5",
        b"e500",
        b"+50",
        b"+500",
        b"00",
        b"0",
        b",",
        b'"1e500',
        b" 3e400",
        b"1.5e-777",
    ]
    limits = ExponentTokens(tokens, 1)

    def allowed(said: bytes) -> list[bytes]:
        place, mask = ExponentPlace(), np.full(1, -1, dtype=np.int32)
        place.push(said)
        limits.restrict(mask, place)
        return [token for i, token in enumerate(tokens) if mask[0] >> i & 1]

    whole = [t for t in tokens if t not in (b" 3e400", b"1.5e-777")]
    assert allowed(b"[") == whole
    assert allowed(b"[1") == [t for t in whole if t != b"e500"]
    assert allowed(b"[1e") == [t for t in whole if t != b"+500"]
    assert allowed(b"[1e5") == [t for t in whole if t != b"00"]
    assert allowed(b"[1e50") == [t for t in whole if t[:1] not in b"01"]
    assert b"1.5e-777" in allowed(b'["1e50')
