"""From a `Round` to what the model reads: checks it, writes the slots into `req_to_token`, makes the tensors."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lightllm.backend.kv_memory import KvMemory
from lightllm.backend.row_state import Feature, RowState
from lightllm.models.batch import Batch
from lightllm.protocol.rounds import Round


@dataclasses.dataclass(frozen=True)
class PromptSpan:
    """Prompt tokens whose log-probabilities one entry wants: [start, start + len(token_ids)), predicted by the
    positions of the round just before each."""

    entry: int
    start: int
    token_ids: np.ndarray
    alternatives: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A round, ready to compute. `batch.logit_index` holds the sampling positions, then those of `prompt_spans`."""

    batch: Batch
    sampled_rows: np.ndarray
    """int64 [S]"""
    positions: np.ndarray
    """int64 [S]: output number of the token that is sampled."""
    prompt_spans: list[PromptSpan]


def prepare(round: Round, memory: KvMemory, state: RowState) -> Prepared:
    """Raises `ValueError` if the round cannot be executed. Joins and leaves have been applied already."""
    _check(round, memory, state)
    device = memory.req_to_token.device
    decodes = round.num_decode
    rows = round.rows.astype(np.int64)
    kv_len = round.kv_len.astype(np.int64)
    ends: np.ndarray | None = None
    if len(rows) == decodes:
        entry_rows, positions = rows, kv_len - 1
    else:
        ends = np.cumsum(round.q_len, dtype=np.int64)
        entry_rows = np.repeat(rows, round.q_len)
        positions = np.arange(len(round.slots)) + np.repeat(kv_len - ends, round.q_len)
    slots = torch.from_numpy(round.slots.astype(np.int64)).to(device)
    rows_on_device = torch.from_numpy(rows).to(device)
    positions_on_device = torch.from_numpy(positions).to(device)
    entry_rows_on_device = torch.from_numpy(entry_rows).to(device)
    memory.req_to_token[entry_rows_on_device, positions_on_device] = slots.to(torch.int32)
    input_ids = state.last_token[rows_on_device[:decodes]]
    if ends is not None:
        chunk_ids = torch.from_numpy(round.token_ids.astype(np.int64)).to(device)
        input_ids = torch.cat([input_ids, chunk_ids])
    sampled = round.samples.nonzero()[0]
    logit_index = sampled if ends is None else ends[sampled] - 1
    spans = [] if ends is None else _prompt_spans(round, state, rows)
    if ends is not None and spans:
        wanted = [ends[s.entry] - kv_len[s.entry] + s.start - 1 + np.arange(len(s.token_ids)) for s in spans]
        logit_index = np.concatenate([logit_index, *wanted])
    batch = Batch(
        input_ids=input_ids,
        positions=positions_on_device,
        slots=slots,
        rows=rows_on_device,
        q_start=torch.from_numpy(np.concatenate([[0], np.cumsum(round.q_len)]).astype(np.int32)).to(device),
        kv_len=torch.from_numpy(round.kv_len.astype(np.int32)).to(device),
        num_decode=decodes,
        max_q_len=int(round.q_len.max()),
        max_kv_len=int(round.kv_len.max()),
        logit_index=torch.from_numpy(logit_index).to(device),
        req_to_token=memory.req_to_token,
        kv=memory.kv,
    )
    sampled_rows = rows[sampled]
    return Prepared(batch, sampled_rows, kv_len[sampled] - state.prompt_len[sampled_rows], spans)


def _prompt_spans(round: Round, state: RowState, rows: np.ndarray) -> list[PromptSpan]:
    """Position p predicts prompt token p + 1; token 0 has no log-probability."""
    spans = []
    for entry in ((state.features[rows] & Feature.PROMPT) != 0).nonzero()[0].tolist():
        row, end = int(rows[entry]), int(round.kv_len[entry])
        start = end - int(round.q_len[entry]) + 1
        token_ids = state.prompt_ids[row][start : end + 1]
        if len(token_ids):
            spans.append(PromptSpan(entry, start, token_ids.astype(np.int64), state.prompt_logprobs[row]))
    return spans


def _check(round: Round, memory: KvMemory, state: RowState) -> None:
    n, decodes, total = len(round.rows), round.num_decode, len(round.slots)
    if not (n == len(round.q_len) == len(round.kv_len) == len(round.samples)) or not 0 <= decodes <= n:
        raise ValueError(f"round {round.seq}: its arrays do not fit together")
    if n == 0:
        return
    rows, q_len, kv_len = round.rows, round.q_len, round.kv_len
    if rows.min() < 0 or rows.max() >= memory.max_rows or not (state.features[rows] & Feature.JOINED).all():
        raise ValueError(f"round {round.seq}: a row is outside [0, {memory.max_rows}) or was never joined")
    if len(np.unique(rows)) != n:
        raise ValueError(f"round {round.seq}: a row occurs twice")
    if q_len.min() < 1 or (q_len[:decodes] != 1).any() or int(q_len.sum()) != total:
        raise ValueError(f"round {round.seq}: q_len does not fit the {total} slots and {decodes} decode rows")
    if (kv_len < q_len).any() or kv_len.max() > memory.max_len:
        raise ValueError(f"round {round.seq}: a context length is below q_len or above {memory.max_len}")
    if round.slots.min() < 0 or round.slots.max() >= memory.slots:
        raise ValueError(f"round {round.seq}: a slot is outside [0, {memory.slots})")
    token_ids = round.token_ids
    if len(token_ids) != total - decodes:
        raise ValueError(
            f"round {round.seq}: {len(token_ids)} token ids for {total - decodes} prefill tokens"
        )
    if len(token_ids) and (token_ids.min() < 0 or token_ids.max() >= state.vocab_size):
        raise ValueError(f"round {round.seq}: a token id is outside the vocabulary of {state.vocab_size}")
