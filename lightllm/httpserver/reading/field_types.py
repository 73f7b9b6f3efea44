"""Types of JSON fields that all request models share: bounded, quick to give up on hostile lists.

Numbers and switches are lax as pydantic's are, and so vLLM's and LightLLM's: 5.0, "5" and true count as 5, 5 and 1, "true" and 1
as true. Many clients write them so (R and Lua know no integers, forms know no numbers). Texts and token ids are strict: a list of
either may stand in the same place.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lightllm.sampling_params import MAX_STOP_SEQUENCES

MAX_TOKEN_ID = 2**31 - 1
MAX_STRINGS = 2048
"""Entries of a list of strings, before the narrower limits of each field."""

Int = Annotated[int, Field(strict=False, ge=-(2**63), lt=2**63)]
AnyTokenId = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
"""Checked later against the vocabulary."""
TokenId = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKEN_ID)]
Float = Annotated[float, Field(strict=False, allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=False)]
Text = Annotated[str, Field(strict=True)]

BadWords = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_STRINGS)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
StopTexts = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_STOP_SEQUENCES)]
NEVER = -100.0
"""The lowest bias there is: what `false` stands for."""


def _by_token(
    biases: dict[str, float | None] | list[tuple[int | str, float | None]],
) -> dict[int | str, float]:
    pairs = biases.items() if isinstance(biases, dict) else biases
    return {_token(token): bias for token, bias in pairs if bias is not None}


def _token(written: int | str) -> int | str:
    """JSON object keys are strings: those that are numbers are ids. Raises `ValueError`."""
    number = re.fullmatch(r"([+-]?[0-9]+)(\.0*)?", written) if isinstance(written, str) else None
    token = int(number[1][:40]) if number else written
    if isinstance(token, int) and not 0 <= token <= MAX_TOKEN_ID:
        raise ValueError(f"token ids must be in [0, {MAX_TOKEN_ID}]")
    return token


_Bias = Annotated[Float, BeforeValidator(lambda bias: NEVER if bias is False else bias)]
LogitBias = Annotated[
    dict[Text, _Bias | None] | Annotated[list[tuple[AnyTokenId | Text, _Bias | None]], Field(fail_fast=True)],
    AfterValidator(_by_token),
]
"""Token -> bias: an id, or a text, whose tokens are all meant (llama.cpp); null is no bias, false is never."""
Scalar = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | Annotated[str, Field(strict=True, max_length=4096)]
)
"""A value of a type that is decided elsewhere: taken as it is."""


class Body(BaseModel):
    """Base of request models: unknown fields are ignored unless a model keeps them (`other_fields`), null means the default (each field is `X | None = None`)."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)
