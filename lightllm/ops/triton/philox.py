"""Counter-based random numbers, bit for bit those of `backend/philox.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm.ops.triton.compile_case import CompileCase


@triton.jit
def philox_kernel(seeds_ptr, choices_ptr, positions_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """out[i] = (first word of Philox4x32-10 + 0.5) / 2^32; key = seed, counter = (position, 0, choice, 0)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    seed = tl.load(seeds_ptr + index, mask=inside, other=0).to(tl.uint64, bitcast=True)
    choice = tl.load(choices_ptr + index, mask=inside, other=0).to(tl.uint32)
    position = tl.load(positions_ptr + index, mask=inside, other=0).to(tl.uint32)
    key_0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key_1 = (seed >> 32).to(tl.uint32)
    zero = choice * 0
    word, _, _, _ = tl.philox_impl(position, zero, choice, zero, key_0, key_1)
    tl.store(out_ptr + index, (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10, mask=inside)


def uniforms(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One number in (0, 1) for each of n (seed, choice index, output position).

    All int64 [n], the seed's 64 bits taken as unsigned. Returns float64 [n].
    """
    count = seeds.shape[0]
    out = torch.empty(count, dtype=torch.float64, device=seeds.device)
    if count:
        philox_kernel[(triton.cdiv(count, 256),)](
            seeds, choices, positions, out, count, BLOCK=256, num_warps=4
        )
    return out


COMPILE_CASES = [
    CompileCase(
        kernel=philox_kernel,
        label="256 rows a program",
        arguments={
            "seeds_ptr": "*i64:16", "choices_ptr": "*i64:16", "positions_ptr": "*i64:16", "out_ptr": "*fp64:16",
            "count": "i32", "BLOCK": 256,
        },
        launch={"num_warps": 4},
    )
]  # fmt: skip
