"""JSON schemas of single values, whose texts are short, and of arrays of them: what `schema_features` puts into objects."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
Feature = Callable[[random.Random], Schema]

_PATTERNS = (
    "^[a-z]{1,8}$", "^[A-Z]{2}-[0-9]{3}$", r"^\d{1,4}$", r"^\w{1,6}$", "^(red|green|blue)$", "^a", "z$", "^[^@ ]{1,5}@[a-z]{1,5}$",
    r"^\(\d{3}\) \d{3}$", "^.{2,6}$", "^[äöü]{1,3}$", r"^[\w.-]{1,9}$", "[0-9]", r"^\S{1,4}$", r"^\s?x$", r"^[\d ]{2,5}$",
    "^(ab?c*d{0,2}|e+?f)$", r"^\u0041\x42$", "^$", "^x{3}$|^y$", r"^[^\d]{2}$", r"^[^\w]$", r"^\W{1,2}$", r"^\D{2,3}$",
)  # fmt: skip
_FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


def _string(dice: random.Random) -> Schema:
    least = dice.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + dice.randint(0, 12)}


def _word_type(dice: random.Random) -> Schema:
    return {"type": dice.choice(("boolean", "null", ["boolean", "null"], ["integer", "null"]))}


def _integer(dice: random.Random) -> Schema:
    low = dice.choice((-1000, -7, 0, 1, 99, 10**9))
    bounds: Schema = dice.choice(
        (
            {},
            {"minimum": low, "maximum": low + dice.choice((0, 1, 12, 1234))},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + dice.choice((2, 50))},
            {"minimum": low},
            {"maximum": low},
            {"minimum": 0, "maximum": 500, "multipleOf": dice.choice((2, 5, 7, 25))},
            {"multipleOf": dice.choice((3, 10))},
        )
    )
    return {"type": "integer", **bounds}


def _number(dice: random.Random) -> Schema:
    low = dice.choice((-2.5, 0, 0.001, 17.25, -1000))
    bounds: Schema = dice.choice(
        (
            {},
            {"minimum": low, "maximum": low + dice.choice((0, 0.5, 3, 1000.125))},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + dice.choice((0.25, 2))},
            {"minimum": low, "exclusiveMaximum": low + 1},
            {"exclusiveMinimum": low},
            {"maximum": low},
            {"minimum": 0, "maximum": 100, "multipleOf": dice.choice((0.5, 0.25, 0.01, 1.5))},
        )
    )
    return {"type": "number", **bounds}


_VALUES: tuple[Any, ...] = (
    "a", "", "größe", "日本", "🙂", 'say "hi"', "back\\slash", "line\nbreak", "\u0000\u001f", "\u2028", "</s>", "<|user|>", 0, -1, 3.5,
    1e10, True, False, None, [], [1, "a", None], {}, {"k": 1}, {"deep": {"er": [True]}}, "null", "x" * 40, 12345678901, 0.1, -0.5,
)  # fmt: skip


def _enum(dice: random.Random) -> Schema:
    return {"enum": dice.sample(_VALUES, dice.randint(1, 6))}


def _large_enum(dice: random.Random) -> Schema:
    count = dice.choice((50, 300, 1000))
    return {"enum": [f"{dice.choice('abcdefgh')}{number:04}" for number in range(count)]}


def _typed_enum(dice: random.Random) -> Schema:
    """Of the values some do not have the type."""
    kind, values = dice.choice(
        (("string", ["a", 1, "b", None]), ("integer", [1, "x", 7]), ("number", [1.5, 2, "no"]))
    )
    return {"type": kind, "enum": values}


def _const(dice: random.Random) -> Schema:
    return {"const": dice.choice(_VALUES)}


def _pattern(dice: random.Random) -> Schema:
    pattern = dice.choice(_PATTERNS)
    bounds = {} if pattern.endswith("$") and pattern.startswith("^") else {"maxLength": 8}
    return {"type": "string", "pattern": pattern, **bounds}


def _format(dice: random.Random) -> Schema:
    return {"type": "string", "format": dice.choice(_FORMATS), "maxLength": 60}


def _pattern_and_length(dice: random.Random) -> Schema:
    return {"type": "string", "pattern": dice.choice(("^[a-z]+$", "^(ab)*$", r"^\d+$", "^[^x]*$", "b")), "minLength": 2, "maxLength": 6}  # fmt: skip


def _array(dice: random.Random) -> Schema:
    least = dice.randint(0, 2)
    return {"type": "array", "items": leaf(dice), "minItems": least, "maxItems": least + dice.randint(0, 3)}


def _tuple(dice: random.Random) -> Schema:
    first = [leaf(dice) for _ in range(dice.randint(1, 4))]
    rest: Schema = dice.choice(
        ({"items": False}, {"items": leaf(dice), "maxItems": len(first) + 2}, {"maxItems": len(first)})
    )
    least = dice.choice((0, 1, len(first)))
    return {"type": "array", "prefixItems": first, "minItems": least, **rest}


def _matrix(dice: random.Random) -> Schema:
    inner: Schema = leaf(dice)
    for _ in range(dice.randint(2, 4)):
        inner = {"type": "array", "items": inner, "minItems": 1, "maxItems": 2}
    return inner


def _empty_array(dice: random.Random) -> Schema:
    return dice.choice(({"type": "array", "maxItems": 0}, {"type": "array", "items": False}))


FEATURES: dict[str, Feature] = {
    made.__name__.removeprefix("_"): made
    for made in (
        _string, _word_type, _integer, _number, _enum, _large_enum, _typed_enum, _const, _pattern, _format, _pattern_and_length, _array, _tuple, _matrix, _empty_array
    )
}  # fmt: skip


def leaf(dice: random.Random) -> Schema:
    """Of any kind that is short."""
    return dice.choice((_string, _integer, _number, _enum, _const, _word_type, _pattern, _format))(dice)


def integer(dice: random.Random) -> Schema:
    return _integer(dice)


def number(dice: random.Random) -> Schema:
    return _number(dice)


def array(dice: random.Random) -> Schema:
    return _array(dice)
