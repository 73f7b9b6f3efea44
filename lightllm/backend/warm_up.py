"""First runs at start: lazy libraries, packed weights and thread pools are paid for before the first request.

They use the hold row and the hold slot only, so no request's memory is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lightllm.backend.kv_memory import KvMemory
from lightllm.backend.row_state import RowState
from lightllm.backend.sampler import Sampler
from lightllm.models.batch import make_batch
from lightllm.protocol.rounds import JoinRow
from lightllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightllm.models.registry import TpPartBaseModel

_TOKENS = 16


def warm_up(model: "TpPartBaseModel", memory: KvMemory, device: torch.device) -> None:
    """One prefill and one decode round, sampled greedily and with filters."""
    length = min(_TOKENS, memory.max_len)
    run_hold_row(model, memory, length, length, num_decode=0)
    logits = run_hold_row(model, memory, 1, length, num_decode=1)
    rows = RowState(1, model.config.vocab_size, device)
    sampler = Sampler(rows, device)
    row, position = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for params in (
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_p=0.9, frequency_penalty=0.1, logprobs=1),
    ):
        rows.join(JoinRow(row=0, prompt_len=1, params=params, seed=0, choice=0, eos_token_ids=[]))
        sampled = sampler.sample(logits.clone(), row, position)
        rows.keep_tokens(row, sampled.token_ids)


def run_hold_row(
    model: "TpPartBaseModel", memory: KvMemory, q_len: int, kv_len: int, num_decode: int
) -> torch.Tensor:
    """A forward pass of one entry in the hold row; returns logits float32 [1, V]."""
    device = memory.req_to_token.device
    batch = make_batch(
        torch.zeros(q_len, dtype=torch.int64, device=device), [memory.max_rows], [q_len], [kv_len], num_decode,
        memory.req_to_token, memory.kv, torch.full((1,), q_len - 1, dtype=torch.int64, device=device),
    )  # fmt: skip
    return model.forward(batch)
