"""JSON schemas of every kind that clients send, one feature or a few each, made from a number.

Their values are short whatever a model says, so that an answer ends within some hundred tokens: texts, arrays and objects have
bounds, recursion has an end that is as likely as going on.
"""

from __future__ import annotations

import random
from typing import Any

from support import schema_leaves
from support.schema_leaves import Feature, Schema

_WORDS = (
    "name",
    "size",
    "colour",
    "x",
    "is_ok",
    "due date",
    "größe",
    "名前",
    "a.b",
    "$id2",
    "emoji 🙂",
    'quo"te',
    "back\\slash",
    "tab\tkey",
    "0",
    "",
)


def schema(number: int) -> Schema:
    """The schema with this number: each feature leads in one of so many."""
    dice = random.Random(number)
    first = list(FEATURES.values())[number % len(FEATURES)](dice)
    if first.keys() & {"$defs", "definitions", "$schema"} or dice.random() < 0.3:
        return first
    return dice.choice((_in_object, _in_array, _in_object))(dice, first)


def feature(number: int) -> str:
    """The name of what leads in the schema with this number."""
    return list(FEATURES)[number % len(FEATURES)]


def _part(dice: random.Random) -> Schema:
    """A leaf, or something small with parts."""
    return dice.choice(
        (schema_leaves.leaf, schema_leaves.leaf, schema_leaves.leaf, schema_leaves.array, _object, _any_of)
    )(dice)


def _in_object(dice: random.Random, inner: Schema) -> Schema:
    names = dice.sample(_WORDS, dice.randint(1, 4))
    properties = {name: schema_leaves.leaf(dice) for name in names} | {"it": inner}
    return _closed(properties, [*dice.sample(names, dice.randint(0, len(names))), "it"])


def _in_array(dice: random.Random, inner: Schema) -> Schema:
    return {"type": "array", "items": inner, "minItems": dice.randint(0, 1), "maxItems": dice.randint(1, 3)}


def _closed(properties: dict[str, Any], required: list[str], **more: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        **more,
    }


# -- objects


def _object(dice: random.Random) -> Schema:
    names = dice.sample(_WORDS, dice.randint(0, 4))
    return _closed(
        {name: schema_leaves.leaf(dice) for name in names}, dice.sample(names, dice.randint(0, len(names)))
    )


def _nested(dice: random.Random) -> Schema:
    inner: Schema = schema_leaves.leaf(dice)
    for depth in range(dice.choice((3, 8, 20))):
        inner = _closed({f"d{depth}": inner}, [f"d{depth}"])
    return inner


def _many_optional(dice: random.Random) -> Schema:
    return _closed({f"f{number}": schema_leaves.leaf(dice) for number in range(dice.choice((10, 20)))}, [])


def _least_properties(dice: random.Random) -> Schema:
    names = dice.sample(_WORDS, 3)
    return _closed(
        {name: schema_leaves.integer(dice) for name in names},
        [],
        **dice.choice(({"minProperties": 1}, {"maxProperties": 1})),
    )


def _map(dice: random.Random) -> Schema:
    return {
        "type": "object",
        "additionalProperties": schema_leaves.leaf(dice),
        "maxProperties": dice.randint(0, 2),
    }


def _map_beside_properties(dice: random.Random) -> Schema:
    return {
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["id"],
        "additionalProperties": {"type": "string", "maxLength": 4},
        "maxProperties": 3,
    }


def _required_beyond_properties(dice: random.Random) -> Schema:
    return {
        "type": "object", "properties": {"a": schema_leaves.leaf(dice)}, "required": ["b", "a"],
        "additionalProperties": {"type": "integer"}, "maxProperties": 3,
    }  # fmt: skip


def _pattern_properties(dice: random.Random) -> Schema:
    patterns = dice.choice((["^a$"], ["^[xyz]$"], ["^n[0-9]$", "^m$"], ["^(left|right)$"], ["^s_", "^i_"]))
    return {
        "type": "object",
        "patternProperties": {pattern: schema_leaves.leaf(dice) for pattern in patterns},
        "additionalProperties": False,
        "maxProperties": dice.randint(1, 3),
    }


def _patterns_and_properties(dice: random.Random) -> Schema:
    return {
        "type": "object",
        "properties": {"x1": {"type": "integer"}, "y": schema_leaves.leaf(dice)},
        "patternProperties": {"^x[0-9]$": {"minimum": 0, "maximum": 9}},
        "required": ["x1"],
        "additionalProperties": False,
    }


def _unicode_keys(dice: random.Random) -> Schema:
    names = [word for word in _WORDS if not word.isascii() or not word.isalnum()]
    return _closed({name: schema_leaves.leaf(dice) for name in names}, dice.sample(names, 3))


# -- combinations


def _any_of(dice: random.Random) -> Schema:
    return {"anyOf": [schema_leaves.leaf(dice) for _ in range(dice.randint(1, 4))]}


def _any_of_objects(dice: random.Random) -> Schema:
    return {
        "anyOf": [
            _closed({"kind": {"const": kind}, kind: schema_leaves.leaf(dice)}, ["kind", kind])
            for kind in ("a", "b", "c")
        ]
    }


def _one_of(dice: random.Random) -> Schema:
    return {
        "oneOf": [
            _closed({"type": {"const": kind}, "value": schema_leaves.leaf(dice)}, ["type", "value"])
            for kind in ("circle", "box")
        ]
    }


def _one_of_types(dice: random.Random) -> Schema:
    return {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}, {"type": "null"}]}


def _all_of(dice: random.Random) -> Schema:
    return {
        "allOf": [
            {"type": "object", "properties": {"a": schema_leaves.leaf(dice)}, "required": ["a"]},
            {"type": "object", "properties": {"b": schema_leaves.leaf(dice)}, "required": ["b"]},
        ],
        "properties": {"a": True, "b": True},
        "additionalProperties": False,
    }


def _all_of_bounds(dice: random.Random) -> Schema:
    return {
        "allOf": [{"type": "integer", "minimum": 3}, {"maximum": 40}, {"multipleOf": dice.choice((1, 2, 3))}]
    }


def _all_of_strings(dice: random.Random) -> Schema:
    return {
        "type": "string",
        "allOf": [
            {"maxLength": 7},
            {"pattern": "^[a-m]*$"},
            {"minLength": 2},
            {"pattern": dice.choice(("b", "^c", "d$"))},
        ],
    }


def _beside_any_of(dice: random.Random) -> Schema:
    return {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "mail": {"type": "string", "maxLength": 9},
            "phone": {"type": "integer"},
        },
        "additionalProperties": False,
        "anyOf": [{"required": ["mail"]}, {"required": ["phone"]}],
    }


# -- references


def _definitions(dice: random.Random) -> Schema:
    return _closed(
        {
            "first": {"$ref": "#/$defs/point"},
            "more": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
        },
        ["first"],
        **{
            "$defs": {
                "point": _closed({"x": schema_leaves.number(dice), "y": schema_leaves.leaf(dice)}, ["x", "y"])
            }
        },
    )


def _list(dice: random.Random) -> Schema:
    return {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": _closed(
                {
                    "v": schema_leaves.leaf(dice),
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                ["v", "next"],
            )
        },
    }


def _tree(dice: random.Random) -> Schema:
    return {
        "$defs": {
            "tree": _closed(
                {
                    "n": schema_leaves.leaf(dice),
                    "kids": {
                        "type": "array",
                        "items": {"$ref": "#/$defs/tree"},
                        "maxItems": dice.choice((1, 2)),
                    },
                },
                ["n"],
            )
        },
        "$ref": "#/$defs/tree",
    }


def _expression(dice: random.Random) -> Schema:
    """Two definitions that need each other."""
    return {
        "$ref": "#/definitions/sum",
        "definitions": {
            "sum": {"type": "array", "items": {"$ref": "#/definitions/term"}, "minItems": 1, "maxItems": 2},
            "term": {"anyOf": [schema_leaves.integer(dice), schema_leaves.integer(dice), _closed({"not": {"$ref": "#/definitions/sum"}}, ["not"])]},
        },
    }  # fmt: skip


def _root_reference(dice: random.Random) -> Schema:
    return {**_closed({"it": schema_leaves.leaf(dice), "child": {"$ref": "#"}}, ["it"]), "$defs": {}}


def _reference_beside(dice: random.Random) -> Schema:
    return {
        "$defs": {"short": {"type": "string", "maxLength": 5}},
        "type": "object",
        "properties": {"s": {"$ref": "#/$defs/short", "minLength": 2, "description": "beside a reference"}},
        "required": ["s"],
        "additionalProperties": False,
    }


# -- as tools make them


def _pydantic(dice: random.Random) -> Schema:
    """What pydantic makes of a model with an optional list of models."""
    return {
        "$defs": {
            "Colour": {"enum": ["red", "grün"], "title": "Colour", "type": "string"},
            "Item": {
                "properties": {
                    "label": {"maxLength": 8, "title": "Label", "type": "string"},
                    "price": {"exclusiveMinimum": 0, "maximum": 99.5, "title": "Price", "type": "number"},
                    "colour": {"anyOf": [{"$ref": "#/$defs/Colour"}, {"type": "null"}], "default": None},
                },
                "required": ["label", "price"], "title": "Item", "type": "object", "additionalProperties": False,
            },
        },
        "properties": {
            "items": {"items": {"$ref": "#/$defs/Item"}, "maxItems": dice.randint(1, 2), "title": "Items", "type": "array"},
            "ok": {"default": True, "title": "Ok", "type": "boolean"},
        },
        "required": ["items"], "title": "Order", "type": "object", "additionalProperties": False,
    }  # fmt: skip


def _remarks(dice: random.Random) -> Schema:
    """Keywords that say nothing about values."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.org/s", "$comment": "c", "title": "t",
        "description": "d", "examples": [1], "deprecated": True, "readOnly": False, **_closed({"v": {**schema_leaves.leaf(dice), "default": 1}}, ["v"]),
    }  # fmt: skip


def _boolean_schemas(dice: random.Random) -> Schema:
    return _closed(
        {"no": False, "yes": {"type": "boolean"}, "any": {"anyOf": [False, schema_leaves.leaf(dice)]}},
        ["yes"],
    )


def _draft_tuple(dice: random.Random) -> Schema:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [schema_leaves.leaf(dice), schema_leaves.leaf(dice)],
        "additionalItems": False, "minItems": 2,
    }  # fmt: skip


def _no_type(dice: random.Random) -> Schema:
    """Keywords that hold for values of their type alone."""
    return {
        "anyOf": [
            {"type": "integer", "maxLength": 2, "maximum": 50},
            {"type": "string", "maximum": 1, "maxLength": 4},
        ]
    }


def _mixed(dice: random.Random) -> Schema:
    names = dice.sample(_WORDS, dice.randint(2, 4))
    return _closed({name: _part(dice) for name in names}, dice.sample(names, dice.randint(1, len(names))))


def _mixed_deep(dice: random.Random) -> Schema:
    return _closed(
        {"a": _mixed(dice), "b": {"type": "array", "items": _mixed(dice), "maxItems": 2}}, ["a", "b"]
    )


FEATURES: dict[str, Feature] = schema_leaves.FEATURES | {
    name.removeprefix("_"): made
    for name, made in list(globals().items())
    if name.startswith("_") and callable(made) and name not in ("_part", "_in_object", "_in_array", "_closed")
}
