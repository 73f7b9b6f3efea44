"""Random JSON schemas of the kinds that clients send, recursive ones and overlapping properties among them."""

from __future__ import annotations

import json
import random
from typing import Any

Schema = dict[str, Any]
NAMES = ("a", "b", "ab", "score", "x1")
FEW_NAMES = ("^a$", "^(a|b)$", "^score$", "^x[0-9]$", "^$", "^(score|x1)$", "^[ab]{1,2}$")
MANY_NAMES = ("^a", "b$", ".")
LEAVES: tuple[Schema, ...] = (
    {"type": "integer"}, {"type": "integer", "minimum": -3, "maximum": 12}, {"type": "number"}, {"type": "boolean"},
    {"type": "null"}, {"type": "string", "maxLength": 4}, {"type": "string", "minLength": 1, "maxLength": 3},
    {"type": "string", "pattern": "^[ab]{1,3}$"}, {"type": "string", "format": "date"}, {"enum": ["a", 1, None]},
    {"const": "k"}, {"type": ["integer", "null"]}, {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 30},
)  # fmt: skip


def random_schema(dice: random.Random) -> Schema:
    """A schema, with definitions that refer to each other where it is recursive."""
    schema = _schema(dice, 0)
    if dice.random() < 0.4:
        schema["$defs"] = {name: _schema(dice, 1) for name in ("first", "second")}
    else:
        _without_references(schema)
    return schema


def names_are_few(schema: Any) -> bool:
    """Whether every object in the schema says which names there may be."""
    if isinstance(schema, list):
        return all(map(names_are_few, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" and "properties" in schema:
        open_ended = schema.get("additionalProperties", True) is not False
        if open_ended or set(schema.get("patternProperties", ())) & set(MANY_NAMES):
            return False
    return all(map(names_are_few, schema.values()))


def _leaf(dice: random.Random) -> Schema:
    return dict(dice.choice(LEAVES))


def _schema(dice: random.Random, depth: int) -> Schema:
    kind = dice.random()
    if depth and kind < 0.12:
        return {"$ref": dice.choice(("#/$defs/first", "#/$defs/second"))}
    if depth > 2 or kind < 0.25:
        return _leaf(dice)
    if kind < 0.4:
        sizes: Schema = dice.choice(({}, {"minItems": 1, "maxItems": 2}, {"maxItems": 2}, {"minItems": 1}))
        first: Schema = dice.choice(({}, {}, {"prefixItems": [_leaf(dice), _schema(dice, depth + 1)]}))
        return {"type": "array", "items": _schema(dice, depth + 1), **sizes, **first}
    if kind < 0.5:
        return {
            dice.choice(("anyOf", "allOf")): [_schema(dice, depth + 1) for _ in range(dice.randint(1, 2))]
        }
    return _object(dice, depth)


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(NAMES, dice.randrange(4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _schema(dice, depth + 1) for name in names},
        "required": dice.sample(names, dice.randint(0, len(names))),
    }
    if dice.random() < 0.75:
        schema["additionalProperties"] = dice.choice((False, False, False, _leaf(dice)))
    if dice.random() < 0.4:
        patterns = dice.sample(FEW_NAMES + MANY_NAMES, dice.randint(1, 2))
        schema["patternProperties"] = {pattern: _leaf(dice) for pattern in patterns}
    if dice.random() < 0.1:
        schema["minProperties"] = len(schema["required"])
    return schema


def _without_references(schema: Any) -> None:
    """Every $ref becomes a schema for anything short."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            schema.clear()
            schema["type"] = "boolean"
        for value in schema.values():
            _without_references(value)
    elif isinstance(schema, list):
        for value in schema:
            _without_references(value)


def value_of(text: str) -> Any:
    """JSON allows numbers beyond a double's range, Python does not read them."""
    return json.loads(text, parse_float=lambda number: max(-1e300, min(1e300, float(number))))
