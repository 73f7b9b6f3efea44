"""First runs at start: lazy libraries, packed weights and thread pools are paid for before the first request.

They use the hold row and the hold slot only, so no request's memory is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lightllm.backend.device import Device
from lightllm.backend.kv_memory import KvMemory
from lightllm.backend.row_state import RowState
from lightllm.backend.sampler import Sampler
from lightllm.backend.sizing import decode_hold_rows, run_hold_rows
from lightllm.protocol.rounds import JoinRow
from lightllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightllm.models.registry import TpPartBaseModel

_TOKENS = 16


def warm_up(model: "TpPartBaseModel", memory: KvMemory, device: Device, largest_round: int) -> None:
    """One prefill and one decode round, sampled greedily and with filters; before them the largest round, where memory
    can run out."""
    length = min(_TOKENS, memory.max_len)
    if device.measures:
        run_hold_rows(model, memory, largest_round)
    run_hold_rows(model, memory, length)
    logits = decode_hold_rows(model, memory, 1, length)
    rows = RowState(1, model.config.vocab_size, device)
    sampler = Sampler(rows, device)
    row = position = np.zeros(1, dtype=np.int64)
    position_on_device = torch.zeros(1, dtype=torch.int64, device=device.torch_device)
    for params in (
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_p=0.9, frequency_penalty=0.1, logprobs=1),
    ):
        rows.join(JoinRow(row=0, prompt_len=1, params=params, seed=0, choice=0, eos_token_ids=[]))
        plan = sampler.plan(row)
        sampled = sampler.sample(logits.clone(), plan, position, position_on_device)
        rows.keep_tokens(plan, sampled.token_ids)
