"""What of `ops/triton/round_inputs.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.round_inputs import DECODE_BLOCK, PREFILL_BLOCK, round_inputs_kernel


def _case(label: str, block: int, warps: int) -> CompileCase:
    return CompileCase(
        kernel=round_inputs_kernel,
        label=label,
        arguments={
            "rows_ptr": "*i64:16", "q_start_ptr": "*i32:16", "kv_len_ptr": "*i32:16", "slots_ptr": "*i64:16",
            "last_token_ptr": "*i64:16", "rope_delta_ptr": "*i64:16", "input_ids_ptr": "*i64:16", "positions_ptr": "*i64:16", "rope_positions_ptr": "*i64:16",
            "table_ptr": "*i32:16", "table_stride": "i32:16", "num_decode": "i32", "BLOCK": block,
        },
        launch={"num_warps": warps},
    )  # fmt: skip


COMPILE_CASES = [_case("decode", DECODE_BLOCK, 1), _case("chunks", PREFILL_BLOCK, 4)]
