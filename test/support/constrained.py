"""Small vocabularies of every kind, schemas, and what their values are: for tests of constrained decoding."""

from __future__ import annotations

import re

import numpy as np

from lightllm.constraints.matchers import Matchers
from lightllm.tokenizer import Tokenizer
from support import tokenizers

KINDS = {
    "byte-level BPE": tokenizers.byte_level,
    "metaspace, byte fallback": tokenizers.metaspace,
    "sentencepiece": tokenizers.sentencepiece_model,
    "tiktoken": tokenizers.qwen_tiktoken,
}
NOTHING = np.zeros(0, np.int32)
"""What a request has said that says its first token next."""


class Vocabulary:
    """The tokens of one tokenizer. Two of its special tokens may end an output, the others may never come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        special = sorted(tokenizer.special_ids)
        self.eos = {special[-1], special[0]}
        self.matchers = Matchers(tokenizer, sorted(self.eos))
        self.tokens = {
            i: data
            for i in range(tokenizer.vocab_size)
            if i not in tokenizer.special_ids and (data := tokenizer.token_bytes(i))
        }
        self.single = {data[0]: i for i, data in self.tokens.items() if len(data) == 1}

    def allowed(self, matcher) -> set[int]:
        mask = self.matchers.masks([matcher])[0]
        assert not matcher.is_error(), matcher.get_error()
        return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())

    def encode(self, data: bytes) -> list[int]:
        """One token a byte."""
        return [self.single[byte] for byte in data]


def is_person(value):
    return (
        type(value) is dict
        and list(value) == ["name", "age", "tags"]
        and type(value["name"]) is str
        and type(value["age"]) is int
        and -5 <= value["age"] <= 130
        and type(value["tags"]) is list
        and 1 <= len(value["tags"]) <= 3
        and all(tag in ("a", "é", "日本") for tag in value["tags"])
    )


def is_tree(value):
    return (
        type(value) is dict
        and set(value) <= {"v", "next"}
        and type(value["v"]) in (bool, type(None), float, int)
        and ("next" not in value or is_tree(value["next"]))
    )


SCHEMAS = {
    "object": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": -5, "maximum": 130},
                "tags": {
                    "type": "array",
                    "items": {"enum": ["a", "é", "日本"]},
                    "minItems": 1,
                    "maxItems": 3,
                },
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        },
        is_person,
    ),
    "recursion": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "v": {"type": ["number", "boolean", "null"]},
                        "next": {"$ref": "#/$defs/node"},
                    },
                    "required": ["v"],
                    "additionalProperties": False,
                }
            },
        },
        is_tree,
    ),
    "alternatives": (
        {
            "anyOf": [
                {"const": "none"},
                {"type": "array", "items": {"type": "boolean"}},
                {"type": "string", "pattern": "^[a-f]{2}-\\d$"},
            ]
        },
        lambda value: (
            value == "none"
            or (type(value) is list and all(type(v) is bool for v in value))
            or (type(value) is str and bool(re.fullmatch(r"[a-f]{2}-\d", value)))
        ),
    ),
    "any object": ({"type": "object"}, lambda value: type(value) is dict),
}
