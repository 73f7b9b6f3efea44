"""The first thing of every round: what follows on the device from each row's state and the little that the host sends."""

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
    """For token t, number j of entry e: position = kv_len[e] - q_len[e] + j; it is written to `positions[t]`, with
    `rope_delta[rows[e]]` added to `rope_positions[t]`, and the token's slot to `req_to_token[rows[e], position]`. The
    first `num_decode` entries, of one token each, take their `input_ids` from `last_token[rows[e]]`; those of the others
    are there already.

    rows: int64 [n], distinct but for the hold row; q_start: int32 [n + 1], where each entry's tokens begin; kv_len:
    int32 [n]; slots: int64 [T]; max_q_len: at least the longest entry; last_token, rope_delta: int64 [max_rows + 1];
    input_ids, positions, rope_positions: int64 [T]; req_to_token: int32 [max_rows + 1, max_len]. Reads no value on the host.
    """
    if rows.is_cuda:
        from lightllm.ops.triton import round_inputs as triton_impl

        triton_impl.build_round_inputs(
            rows, q_start, kv_len, slots, num_decode, max_q_len, last_token, rope_delta, input_ids, positions,
            rope_positions, req_to_token,
        )  # fmt: skip
        return
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
