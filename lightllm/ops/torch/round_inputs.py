"""`ops/round_inputs.py` in torch."""

from __future__ import annotations

import torch


def build_round_inputs(
    rows: torch.Tensor,
    q_start: torch.Tensor,
    kv_len: torch.Tensor,
    slots: torch.Tensor,
    num_decode: int,
    max_q_len: int,
    last_token: torch.Tensor,
    rope_delta: torch.Tensor,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    rope_positions: torch.Tensor,
    req_to_token: torch.Tensor,
) -> None:
    if num_decode:
        torch.index_select(last_token, 0, rows[:num_decode], out=input_ids[:num_decode])
    if len(positions) == len(rows):
        torch.sub(kv_len, 1, out=positions)
    else:
        tokens = len(positions)
        entries = torch.repeat_interleave(q_start.diff(), output_size=tokens)
        torch.add(torch.arange(tokens, device=rows.device), (kv_len - q_start[1:])[entries], out=positions)
        rows = rows[entries]
    torch.add(positions, rope_delta[rows], out=rope_positions)
    req_to_token[rows, positions] = slots.to(torch.int32)
