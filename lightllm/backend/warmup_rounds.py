"""Rounds of every kind, run before the first request: what is compiled, loaded or allocated at first use is then there.

They use rows and slots as real rounds do, and leave the rows again; no request has any yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

PROMPT, ANSWER = 20, 4
_KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=40),
    SamplingParams(
        temperature=1.0, logprobs=2, frequency_penalty=0.1, exponential_decay_length_penalty=(1, 1.5),
        regular_constraint="(?s).*",
    ),
    SamplingParams(temperature=0.0, logprobs=-1),
]  # fmt: skip
ROWS = len(_KINDS)
SLOTS = ROWS * (PROMPT + ANSWER)


def warmup_rounds(prompts_only: bool = False) -> Iterator[Round]:
    """prompts_only: of a model that generates nothing, one prompt and the end. Rows that are each sampled in another way: prompts
    whole and in chunks, alone and beside rows that decode, then decode rounds of one kind and of several together. Needs ROWS rows, SLOTS slots and contexts of PROMPT + ANSWER tokens."""
    yield _round([], [(0, 0, PROMPT)], joins=[0])
    if prompts_only:
        yield _round([], [], leaves=[0])
        return
    yield _round([(0, PROMPT + 1)], [(1, 0, 8), (2, 0, PROMPT), (3, 0, PROMPT)], joins=[1, 2, 3])
    yield _round([(0, PROMPT + 2), (2, PROMPT + 1)], [(1, 8, PROMPT)])
    yield _round([(0, PROMPT + 3)], [])
    yield _round([(3, PROMPT + 1)], [])
    yield _round([(1, PROMPT + 1), (2, PROMPT + 2)], [])
    yield _round([(0, PROMPT + 4), (1, PROMPT + 2), (2, PROMPT + 3)], [])
    yield _round([], [], leaves=list(range(ROWS)))


def _round(
    decode: list[tuple[int, int]],
    chunks: list[tuple[int, int, int]],
    joins: list[int] | None = None,
    leaves: list[int] | None = None,
) -> Round:
    """decode: (row, context length); chunks: (row, start, end) of its prompt."""
    spans = [(row, kv_len - 1, kv_len) for row, kv_len in decode] + chunks
    stride = PROMPT + ANSWER
    slots = [row * stride + position for row, start, end in spans for position in range(start, end)]
    return Round(
        seq=0,
        num_decode=len(decode),
        rows=int32([row for row, _, _ in spans]),
        q_len=int32([end - start for _, start, end in spans]),
        kv_len=int32([end for _, _, end in spans]),
        samples=np.array([end >= PROMPT for _, _, end in spans], dtype=np.uint8),
        token_ids=int32([1] * sum(end - start for _, start, end in chunks)) if chunks else EMPTY_INT32,
        slots=int32(slots),
        joins=[
            JoinRow(row, PROMPT, _KINDS[row], seed=row, choice=0, end_token_ids=[0], history_ids=int32([1] * PROMPT))
            for row in joins or []
        ],
        leaves=leaves or [],
    )  # fmt: skip
