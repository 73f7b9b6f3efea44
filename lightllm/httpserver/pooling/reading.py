"""From what a client wrote to the prompts of its vectors."""

from __future__ import annotations

from typing import Any

from lightllm.httpserver.pooling.models import PairsRequest, PoolingRequest
from lightllm.httpserver.pooling.pairs import PairForm
from lightllm.httpserver.reading.prompts import check_vocabulary
from lightllm.httpserver.record import PromptRecord
from lightllm.httpserver.state import ServerState
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


async def read_pairs(
    state: ServerState,
    form: PairForm,
    body: PairsRequest,
    queries: list[str],
    documents: list[str],
    params: SamplingParams,
) -> list[PromptRecord]:
    """A prompt of each document with its query, of which there is one for all or one for each. Raises `RequestError`."""
    limits, encoder = state.limits, state.encoder
    limit = limits.max_req_total_len
    keep, left, special = body.kept(limit), body.truncation_side == "left", body.add_special_tokens

    def encode() -> list[list[int]]:
        found = []
        for index, document in enumerate(documents):
            query = encoder.bounded(queries[index % len(queries)], limit, "query")
            if keep is not None:
                ids = form.encode_cut(encoder.tokenizer, query, document, special, keep, left)
            else:
                bounded = encoder.bounded(document, limit, "documents")
                ids = form.encode(encoder.tokenizer, query, bounded, special)
            found.append(encoder.fit_input(ids, limits, "documents"))
        return found

    return [PromptRecord(ids, params) for ids in await encoder.apart(encode)]
