"""Rounds: what the Router tells the Model Backends to compute, and what comes back.

The Router decides all bookkeeping; a backend computes. All ranks get the same bytes and execute rounds in order, so a
slot freed in round t may be written in round t + 1. See DESIGN 5.1.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lightllm.protocol.arrays import EMPTY_FLOAT32, EMPTY_INT32, Array
from lightllm.protocol.messages import ImageSpan, TopLogprobs
from lightllm.sampling_params import SamplingParams


def first_seq(epoch: int) -> int:
    """The sequence number of an epoch's first round: a result of an earlier epoch never has the number of a later one's
    round."""
    return epoch << 32


class JoinRow(msgspec.Struct, array_like=True, frozen=True):
    """A request that enters (or re-enters) a row with this round. The row's former content is void."""

    row: int
    prompt_len: int
    """The token sampled at context length `kv_len` is output number `kv_len - prompt_len` (from 0)."""
    params: SamplingParams
    seed: int
    choice: int
    """Choice index among siblings: the second word of the random counter."""
    end_token_ids: list[int]
    """Ids that end the request (EOS unless ignored, stop_token_ids): suppressed below `min_new_tokens`."""
    prefix_slots: Array = EMPTY_INT32
    """int32 [cached tokens]: slots of the context that is already in KV memory."""
    history_ids: Array = EMPTY_INT32
    """int32: all token ids, prompt and generated; only where sampling needs them (penalties, constraints, prompt
    log-probabilities)."""
    images: list[ImageSpan] = []
    """As in `AddRequest`: where embeddings take the place of token ids, and, for M-RoPE, what decides the rotary positions."""


class Round(msgspec.Struct, array_like=True, frozen=True, tag="round"):
    """One step of the model. Rows are ordered: `num_decode` decode rows, then the prefill chunks.

    n = len(rows), T = sum(q_len).
    """

    seq: int
    num_decode: int
    rows: Array
    """int32 [n]: the request row of each entry; no row occurs twice."""
    q_len: Array
    """int32 [n]: tokens computed this round. A decode row computes the token that it sampled last and, where this is above 1,
    what the backend expects to follow it: the result says how many tokens came of that."""
    kv_len: Array
    """int32 [n]: context length afterwards, new tokens included; for a decode row if all its tokens count."""
    samples: Array
    """uint8 [n]: 1 where a token is sampled (decode rows and last chunks)."""
    token_ids: Array
    """int32 [T - tokens of the decode rows]: those of the prefill chunks; a decode row takes its token from the device."""
    slots: Array
    """int32 [T]: the KV slots that the new tokens write to."""
    joins: list[JoinRow] = []
    leaves: list[int] = []
    """Rows that are given up before this round computes (a row may leave and be joined anew in one round)."""


class Resync(msgspec.Struct, array_like=True, frozen=True, tag="resync"):
    """After `RoundResult.failed`: backends skip every round until this arrives; `seq` is the next round they will get."""

    seq: int


ToBackend = Round | Resync


class RowPromptLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """For entry `entry` of the round: log-probabilities of prompt tokens [start, start + len(logprobs))."""

    entry: int
    start: int
    logprobs: Array
    """float32 [positions]"""
    top: list[TopLogprobs] = []


class RowPooled(msgspec.Struct, array_like=True, frozen=True):
    """For entry `entry` of the round: what its chunk adds to the vector of its prompt (models for vectors)."""

    entry: int
    values: Array
    """float32 [size]"""


class RowError(msgspec.Struct, array_like=True, frozen=True):
    """Why the request in a row cannot go on."""

    reason: str
    kind: Literal["constraint", "row", "not_finite"] = "row"
    """constraint: it has become too complex, or nothing can follow, which is the client's affair; row: an exception while the
    row was prepared; not_finite: the model's logits, log-probabilities or score are no numbers."""


class RoundResult(msgspec.Struct, array_like=True, frozen=True, tag="result"):
    """Rank 0's answer to a round, in the order of its rows that sampled."""

    seq: int
    token_ids: Array = EMPTY_INT32
    """int32 [tokens]: those of the first row that sampled, those of the next, and so on."""
    logprobs: Array = EMPTY_FLOAT32
    """float32, same length: log-probability of the chosen token."""
    top: dict[int, TopLogprobs] = {}
    """Position in `token_ids` -> alternatives."""
    prompt_logprobs: list[RowPromptLogprobs] = []
    pooled: list[RowPooled] = []
    errors: dict[int, RowError] = {}
    """Entry of the round -> why its request ends here; what it sampled is void, what the others did is not."""
    seconds: float = 0.0
    """Compute time of the round on the backend."""
    failed: str = ""
    """Not empty: the round was not executed (or not to its end); why."""
    out_of_memory: bool = False
    counts: Array = EMPTY_INT32
    """int32 [number of rows with samples == 1]: tokens of each, from 1 to the `q_len` of a decode row. Empty: one of each.
    Of a decode row's new slots, as many as tokens hold KV that counts; the others are written anew."""
