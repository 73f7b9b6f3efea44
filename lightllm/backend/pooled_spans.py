"""Models for vectors: which outputs of a round count, and how much.

    vector = sum over the prompt's chunks of  weight * sum of the outputs of the chunk's tokens that count

    last    the last token of the last chunk, weight 1
    first   the first token of the first chunk, weight 1
    mean    every token, weight 1 / tokens of the prompt

The Router adds up the parts: nothing is kept here between rounds, so a round that fails, or a request that pauses, leaves
nothing behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lightllm.model_folder.pooling import PoolingMethod
from lightllm.protocol.rounds import Round


@dataclasses.dataclass(frozen=True)
class PooledSpan:
    """Neighbouring tokens of the batch whose outputs count for one entry of the round."""

    entry: int
    first: int
    count: int
    weight: float


def pooled_spans(
    method: PoolingMethod, round: Round, starts: np.ndarray, prompt_len: np.ndarray
) -> list[PooledSpan]:
    """starts: int64 [n + 1], where the tokens of each entry begin in the batch; prompt_len: int64 [n]."""
    if method == "last":
        ends = round.samples.nonzero()[0].tolist()
        return [PooledSpan(entry, int(starts[entry + 1]) - 1, 1, 1.0) for entry in ends]
    if method == "first":
        begins = (round.kv_len == round.q_len).nonzero()[0].tolist()
        return [PooledSpan(entry, int(starts[entry]), 1, 1.0) for entry in begins]
    return [
        PooledSpan(entry, int(starts[entry]), int(round.q_len[entry]), 1.0 / int(prompt_len[entry]))
        for entry in range(len(round.rows))
    ]


def pooled_positions(spans: Sequence[PooledSpan]) -> np.ndarray:
    """int64: tokens of the batch, those of each span in turn."""
    return np.concatenate(
        [np.zeros(0, dtype=np.int64), *(np.arange(s.first, s.first + s.count) for s in spans)]
    )
