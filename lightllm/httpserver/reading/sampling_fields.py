"""The fields of request bodies that are sampling parameters, made from what `sampling_params` declares of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model

from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading.constraints import JsonSchema
from lightllm.httpserver.reading.field_types import (
    MAX_STRINGS,
    AnyTokenId,
    Body,
    Bool,
    Float,
    Int,
    LogitBias,
    StopTexts,
    Text,
    TokenIds,
)
from lightllm.sampling_params import MAX_TOKEN_LIST, PARAMETERS, SamplingParams

Api = Literal["native", "openai"]
Encode = Callable[[str], list[int]]
"""Token ids of a text, without BOS and the like."""
MAX_BIASED_CHARACTERS = 2000
"""Of the texts in a `logit_bias`."""

_TYPES: dict[Any, Any] = {
    bool: Bool, int: Int, float: Float, str: Text, int | None: Int, float | None: Float, list[int]: TokenIds,
    dict[int, float]: LogitBias,
}  # fmt: skip
"""Type of a parameter -> what a body takes for it."""
_OWN_TYPES: dict[tuple[Api, str], Any] = {
    ("native", "exponential_decay_length_penalty"): Annotated[list[Any], Field(min_length=2, max_length=2)],
    ("native", "stop_sequences"): Text
    | Annotated[
        list[Text | Annotated[list[AnyTokenId], Field(fail_fast=True, max_length=4096)]],
        Field(fail_fast=True, max_length=MAX_STRINGS),
    ],
    ("native", "guided_json"): JsonSchema,
    ("openai", "stop_sequences"): Text | StopTexts,
    ("openai", "guided_json"): JsonSchema,
}
"""Of parameters that bodies take in other forms than their type's; the body converts them."""


def names(api: Api) -> dict[str, str]:
    """Field of a body -> field of `SamplingParams`, as declared."""
    found = ((getattr(spec, api), name) for name, spec in PARAMETERS.items())
    return {name if own == "" else own: name for own, name in found if own is not None}


def sampling_fields(
    api: Api, first: Sequence[str] = (), placed: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """A base for the body of an API, with a field for each parameter; absent and null mean the default.

    Fields are listed in /openapi.json, and told of in errors, in this order: those in `first`, then as declared. placed: after a
    field (first of all: ""), fields that stand there, sampling parameters or others, which the body itself declares.
    """
    kinds, fields_of = get_type_hints(SamplingParams), names(api)
    placed = placed or {}
    apart = {name for group in placed.values() for name in group}
    fields: dict[str, Any] = {}

    def place(name: str) -> None:
        parameter = fields_of.get(name)
        if parameter is not None:
            kind = _OWN_TYPES.get((api, parameter)) or _TYPES[kinds[parameter]]
            description = PARAMETERS[parameter].description if api == "native" else ""
            fields[name] = (kind | None, Field(default=None, description=description or None))
        elif name:
            fields[name] = (Any, None)
        for other in placed.get(name, ()):
            place(other)

    for name in ("", *dict.fromkeys((*first, *fields_of))):
        if name not in apart:
            place(name)
    return create_model("SamplingFields", __base__=Body, **fields)


def stated(body: Body, api: Api, encode: Encode) -> dict[str, Any]:
    """Values of `SamplingParams` that a body states, as they stand there, but for texts that name tokens. Raises
    `InvalidParameter`."""
    values = {}
    for name, parameter in names(api).items():
        value = getattr(body, name)
        if value == 0 and api == "openai" and (zero := PARAMETERS[parameter].zero_means) is not None:
            value = zero
        if value is not None:
            values[parameter] = value
    if biases := values.get("logit_bias"):
        values["logit_bias"] = _by_ids(biases, encode)
    return values


def _by_ids(biases: dict[int | str, float], encode: Encode) -> dict[int, float]:
    """Where a token is named twice, the last one counts. Raises `InvalidParameter` before it tokenizes much."""
    texts = [token for token in biases if isinstance(token, str)]
    if len(texts) > MAX_TOKEN_LIST or sum(map(len, texts)) > MAX_BIASED_CHARACTERS:
        raise InvalidParameter(
            f"logit_bias has {len(texts)} texts of {sum(map(len, texts))} characters, at most {MAX_TOKEN_LIST} of "
            f"{MAX_BIASED_CHARACTERS} together",
            param="logit_bias",
        )
    found: dict[int, float] = {}
    for token, bias in biases.items():
        found |= dict.fromkeys([token] if isinstance(token, int) else encode(token), bias)
    return found
