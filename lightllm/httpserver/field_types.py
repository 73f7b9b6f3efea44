"""Types of JSON fields that all request models share: bounded, quick to give up on hostile lists.

Numbers and switches are lax as pydantic's are, and so vLLM's and LightLLM's: 5.0, "5" and true count as 5, 5 and 1, "true" and 1
as true. Many clients write them so (R and Lua know no integers, forms know no numbers). Texts and token ids are strict: a list of
either may stand in the same place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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

TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
StopTexts = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_STOP_SEQUENCES)]
LogitBias = Annotated[
    dict[Annotated[int, Field(strict=False, ge=0, le=MAX_TOKEN_ID)], Float | None],
    AfterValidator(lambda biases: {i: bias for i, bias in biases.items() if bias is not None}),
]
"""JSON object keys are strings, so these are converted; null is no bias."""
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
