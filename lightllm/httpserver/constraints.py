"""How clients ask for an output of a certain form: LightLLM's `guided_json`, OpenAI's `response_format`, vLLM's
`structured_outputs` and `guided_*`. All of them end as one of the three constraints of `SamplingParams`."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from lightllm.errors import InvalidParameter
from lightllm.httpserver.field_types import Body, Text

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
    """OpenAI's: type is text, json_object or json_schema. A `schema` beside the type is LightLLM's."""

    type: Text
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


def schema_text(schema: dict[str, Any] | str) -> str:
    """A schema as `SamplingParams.guided_json` wants it."""
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def constraint_of(sources: dict[str, dict[str, str]]) -> dict[str, str]:
    """The one constraint, as fields of `SamplingParams`, of all that a request says. `sources`: names of the request's
    fields -> what each of them asks for. Raises `InvalidParameter` for more than one."""
    asked = {name: constraint for name, constraint in sources.items() if constraint}
    if len(asked) > 1:
        raise InvalidParameter(f"{' and '.join(asked)} can not be used in same time", param=next(iter(asked)))
    return next(iter(asked.values()), {})


def of_response_format(form: ResponseFormat | None) -> dict[str, str]:
    if form is None or form.type == "text":
        return {}
    if form.type == "json_object":
        return {"guided_json": _ANY_OBJECT if form.schema_ is None else schema_text(form.schema_)}
    if form.type != "json_schema":
        raise InvalidParameter(
            f"response_format {form.type[:40]!r} is not supported: text, json_object, json_schema are",
            param="response_format",
        )
    schema = form.schema_ if form.json_schema is None else form.json_schema.schema_
    if schema is None:
        raise InvalidParameter(
            "response_format json_schema needs json_schema.schema", param="response_format"
        )
    return {"guided_json": schema_text(schema)}


def of_structured_outputs(outputs: StructuredOutputs | None) -> dict[str, str]:
    if outputs is None:
        return {}
    for name in ("structural_tag", "whitespace_pattern"):
        if getattr(outputs, name) is not None:
            raise InvalidParameter(f"structured_outputs.{name} is not supported", param="structured_outputs")
    return constraint_of(
        {
            "structured_outputs.json": of_json(outputs.json_),
            "structured_outputs.json_object": {"guided_json": _ANY_OBJECT} if outputs.json_object else {},
            "structured_outputs.regex": of_regex(outputs.regex),
            "structured_outputs.choice": of_choice(outputs.choice, "structured_outputs"),
            "structured_outputs.grammar": of_grammar(outputs.grammar),
        }
    )


def of_json(schema: dict[str, Any] | str | None) -> dict[str, str]:
    return {} if schema is None or schema == "" else {"guided_json": schema_text(schema)}


def of_regex(regex: str | None) -> dict[str, str]:
    return {"regular_constraint": regex} if regex else {}


def of_grammar(grammar: str | None) -> dict[str, str]:
    return {"guided_grammar": grammar} if grammar else {}


def of_choice(choice: list[str] | None, param: str = "guided_choice") -> dict[str, str]:
    """As a grammar in Lark, whose strings are written as JSON's."""
    if choice is None:
        return {}
    if not choice:
        raise InvalidParameter(f"{param} must hold at least one text", param=param)
    return {"guided_grammar": "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in choice)}
