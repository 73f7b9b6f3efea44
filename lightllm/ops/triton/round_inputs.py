"""The inputs of a round, worked out from what the rows keep on the device: one program an entry and block of tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.launch import cdiv, pdl_options

DECODE_BLOCK, PREFILL_BLOCK = 16, 1024


@triton.jit(do_not_specialize=["num_decode"])
def round_inputs_kernel(
    rows_ptr, q_start_ptr, kv_len_ptr, slots_ptr, last_token_ptr, rope_delta_ptr, input_ids_ptr, positions_ptr,
    rope_positions_ptr, table_ptr,
    table_stride, num_decode,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Entry e: positions[t] = kv_len - q_len + j for its token j = t - q_start[e]; rope_positions[t] = positions[t] +
    rope_delta[row]; table[row, positions[t]] = slots[t]; input_ids[t] = last_token[row] where e < num_decode.

    Grid (n, ceil(longest q_len / BLOCK)). The table's row may begin beyond 2**31 elements.
    """
    entry = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    start = tl.load(q_start_ptr + entry)
    length = tl.load(q_start_ptr + entry + 1) - start
    row = tl.load(rows_ptr + entry)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = number < length
    token = start + number
    position = tl.load(kv_len_ptr + entry) - length + number
    tl.store(positions_ptr + token, position.to(tl.int64), mask=inside)
    tl.store(rope_positions_ptr + token, position + tl.load(rope_delta_ptr + row), mask=inside)
    slot = tl.load(slots_ptr + token, mask=inside, other=0)
    tl.store(table_ptr + row * table_stride.to(tl.int64) + position, slot.to(tl.int32), mask=inside)
    if entry < num_decode:
        tl.store(input_ids_ptr + start, tl.load(last_token_ptr + row))


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
    if len(rows) == 0:
        return
    block = DECODE_BLOCK if max_q_len == 1 else PREFILL_BLOCK
    round_inputs_kernel[(len(rows), cdiv(max_q_len, block))](
        rows, q_start, kv_len, slots, last_token, rope_delta, input_ids, positions, rope_positions, req_to_token,
        req_to_token.stride(0), num_decode,
        BLOCK=block, num_warps=1 if max_q_len == 1 else 4, **pdl_options(rows.device),
    )  # fmt: skip
