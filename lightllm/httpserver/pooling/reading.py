"""From what a client wrote to the prompts of its vectors."""

from __future__ import annotations

from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.httpserver.pooling.models import EmbeddingsRequest, PoolingRequest
from lightllm.httpserver.reading.prompts import check_vocabulary
from lightllm.httpserver.record import PromptRecord
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.vector_model import VectorModel
from lightllm.sampling_params import SamplingParams


async def read_prompts(
    state: ServerState, body: PoolingRequest, given: Any, params: SamplingParams, field: str = "input"
) -> list[PromptRecord]:
    """given: a text, its token ids, or several of either. Raises `RequestError`."""
    limits, encoder = state.limits, state.encoder
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    keep, left = body.kept(limits.max_req_total_len), body.truncation_side == "left"
    if isinstance(several[0], str):
        special = body.add_special_tokens is not False
        lists = await encoder.encode_inputs(several, special, limits.max_req_total_len, field, keep, left)
    else:
        lists = several if keep is None else [ids[-keep:] if left else ids[:keep] for ids in several]
        for ids in lists:
            check_vocabulary(ids, limits.vocab_size, field)
    return [PromptRecord(encoder.fit_input(ids, limits, field), params) for ids in lists]


def checked_dimensions(body: EmbeddingsRequest, model: VectorModel, name: str) -> int | None:
    """The size that is asked for; None: the model's own. Raises `InvalidParameter`."""
    asked, known = body.dimensions, model.matryoshka
    if asked is None or (asked == model.size and not known.allowed):
        return None
    if not known.allowed:
        raise InvalidParameter(
            f"{name} gives embeddings of {model.size} numbers, and its folder does not say that they may be cut to "
            f"{asked}: config.json has neither is_matryoshka nor matryoshka_dimensions",
            param="dimensions",
        )
    if known.dimensions and asked not in known.dimensions:
        sizes = ", ".join(map(str, known.dimensions))
        raise InvalidParameter(f"dimensions must be one of {sizes}, got {asked}", param="dimensions")
    if not 1 <= asked <= model.size:
        raise InvalidParameter(f"dimensions must be in [1, {model.size}], got {asked}", param="dimensions")
    return asked
