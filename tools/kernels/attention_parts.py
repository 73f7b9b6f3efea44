"""What of `ops/triton/attention_parts.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.attention_parts import BLOCK_ENTRIES, BLOCK_PARTS, COUNTS, attention_parts_kernel


def _case(label: str, starts: bool) -> CompileCase:
    return CompileCase(
        kernel=attention_parts_kernel,
        label=label,
        arguments={
            "start_ptr": "*i32" if starts else None, "length_ptr": None if starts else "*i32",
            "first_ptr": "*i32:16", "entry_of_ptr": "*i32:16", "arrived_ptr": "*i32:16",
            **dict.fromkeys(COUNTS, "i32"),
            "STARTS": starts, "BLOCK_ENTRIES": BLOCK_ENTRIES, "BLOCK_PARTS": BLOCK_PARTS,
        },
        launch={"num_warps": 4},
    )  # fmt: skip


COMPILE_CASES = [_case("contexts to decode over", starts=False), _case("chunks to prefill", starts=True)]
