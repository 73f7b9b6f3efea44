"""How clients ask for an output of a certain form: LightLLM's `guided_json`, OpenAI's `response_format`, vLLM's
`structured_outputs` and `guided_*`. All of them end as one of the three constraints of `SamplingParams`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import Field, WithJsonSchema

from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading.field_types import Body, Text
from lightllm.sampling_params import CONSTRAINTS

MAX_CHOICES = 1024
_ANY_OBJECT = '{"type":"object"}'

JsonSchema = Annotated[
    dict[str, Any] | Text, WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})
]
"""A JSON schema, or its text."""
Choices = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_CHOICES)]
"""The texts of which one is the output."""


class NamedSchema(Body):
    name: Text | None = None
    schema_: JsonSchema | None = Field(default=None, alias="schema")


class ResponseFormat(Body):
    """OpenAI's: type is text, json_object or json_schema. A `schema` beside the type, or alone, is LightLLM's; a `value` TGI's,
    whose types are json, json_schema and regex too, and which huggingface_hub sends beside json_object."""

    type: Text | None = None
    value: JsonSchema | None = None
    json_schema: NamedSchema | None = None
    schema_: JsonSchema | None = Field(default=None, alias="schema")


class StructuredOutputs(Body):
    """vLLM's: one of these."""

    json_: JsonSchema | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    structural_tag: Any = None
    whitespace_pattern: Text | None = None


class ConstraintRequest(NamedTuple):
    """A constraint as a client asked for it."""

    field: str
    """Where: the path of the field in the body. "" for none."""
    values: dict[str, str]
    """Of `SamplingParams`."""


MAX_BAD_WORDS = 100
MAX_BAD_CHARACTERS = 1000
"""Of `bad_words`."""
NO_CONSTRAINT = ConstraintRequest("", {})


@contextlib.contextmanager
def error_field(field: str) -> Iterator[None]:
    """Errors about a constraint of `SamplingParams` say in which field of the body it was asked for."""
    try:
        yield
    except InvalidParameter as error:
        if error.param not in CONSTRAINTS or field in ("", error.param):
            raise
        own = f"{error.param} "
        message = error.message
        message = field + message[len(own) - 1 :] if message.startswith(own) else f"{field}: {message}"
        raise InvalidParameter(message, param=_top(field)) from error


def the_one_of(*asked: ConstraintRequest) -> ConstraintRequest:
    """The one constraint of a request. Raises `InvalidParameter` for more than one."""
    given = [one for one in asked if one.field]
    if len(given) > 1:
        names = " and ".join(one.field for one in given)
        raise InvalidParameter(f"{names} can not be used in same time", param=_top(given[0].field))
    return given[0] if given else NO_CONSTRAINT


def of_response_format(form: ResponseFormat | None) -> ConstraintRequest:
    if form is None:
        return NO_CONSTRAINT
    schema = form.schema_ if form.json_schema is None else form.json_schema.schema_
    if schema is None:
        schema = form.value
        if isinstance(schema, dict) and form.type == "json_schema":
            schema = schema.get("schema", schema)  # beside its name
    kind = form.type or ("json_schema" if schema is not None else "")
    if form.value is not None and kind == "json":
        kind = "json_schema"
    if isinstance(form.value, str) and kind == "regex":
        return asked("response_format", "regular_constraint", form.value)
    if kind == "text" and schema is None:
        return NO_CONSTRAINT
    if kind == "json_object" and schema is None:
        schema = _ANY_OBJECT
    if kind not in ("json_schema", "json_object"):
        raise InvalidParameter(
            f"response_format {kind[:40]!r} {'with a schema ' * (kind == 'text')}is not supported: "
            "text, json_object, json_schema are",
            param="response_format",
        )
    if schema is None:
        raise InvalidParameter(
            "response_format json_schema needs json_schema.schema", param="response_format"
        )
    return ConstraintRequest("response_format", {"guided_json": schema_text(schema)})


def of_structured_outputs(outputs: StructuredOutputs | None) -> ConstraintRequest:
    if outputs is None:
        return NO_CONSTRAINT
    for name in ("structural_tag", "whitespace_pattern"):
        if getattr(outputs, name) is not None:
            raise InvalidParameter(f"structured_outputs.{name} is not supported", param="structured_outputs")
    return the_one_of(
        asked("structured_outputs.json", "guided_json", outputs.json_),
        asked("structured_outputs.json_object", "guided_json", _ANY_OBJECT if outputs.json_object else None),
        asked("structured_outputs.regex", "regular_constraint", outputs.regex),
        of_choice("structured_outputs.choice", outputs.choice),
        asked("structured_outputs.grammar", "guided_grammar", outputs.grammar),
    )


def asked(field: str, constraint: str, value: dict[str, Any] | str | None) -> ConstraintRequest:
    """`constraint` of `SamplingParams`, which is `value`; none if that is null or no text."""
    return (
        NO_CONSTRAINT if value in (None, "") else ConstraintRequest(field, {constraint: schema_text(value)})
    )


def of_choice(field: str, choice: list[str] | None) -> ConstraintRequest:
    """As a grammar in Lark, whose strings are written as JSON's; DEL must be escaped as well."""
    if choice is None:
        return NO_CONSTRAINT
    if not choice:
        raise InvalidParameter(f"{field} must hold at least one text", param=_top(field))
    texts = (json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f") for text in choice)
    return ConstraintRequest(field, {"guided_grammar": "start: " + " | ".join(texts)})


def of_bad_words(field: str, words: list[str] | None) -> ConstraintRequest:
    """As a grammar in Lark: any text that holds none of them, wherever tokens end."""
    if not words:
        return NO_CONSTRAINT
    if not all(words):
        raise InvalidParameter(f"{field} must hold no empty text", param=_top(field))
    size = sum(map(len, words))
    if len(words) > MAX_BAD_WORDS or size > MAX_BAD_CHARACTERS:
        raise InvalidParameter(
            f"{field} has {len(words)} texts of {size} characters, at most {MAX_BAD_WORDS} of {MAX_BAD_CHARACTERS} together",
            param=_top(field),
        )
    any_of = "|".join(map(_literally, words))
    return ConstraintRequest(
        field, {"guided_grammar": f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*)({any_of})(?s:.*)/"}
    )


def _literally(text: str) -> str:
    """As a regular expression that stands between slashes."""
    plain = (c if c.isascii() and c.isalnum() else rf"\x{{{ord(c):x}}}" for c in text)
    return "".join(plain)


def schema_text(schema: dict[str, Any] | str) -> str:
    """A schema as `SamplingParams.guided_json` wants it."""
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def _top(field: str) -> str:
    return field.partition(".")[0]
