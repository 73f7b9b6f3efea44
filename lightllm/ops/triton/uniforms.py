"""Counter-based random numbers: one program for all rows of a round."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.launch import cdiv, pdl_options

BLOCK = 128


@triton.jit(do_not_specialize=["count"])
def uniforms_kernel(
    seeds_ptr, choices_ptr, positions_ptr, out_ptr, count, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """out[i] = (w + 0.5) / 2**32, w = first word of Philox4x32-10 with key seeds[i] and counter (position, 0, choice, 0).

    Grid (ceil(count / BLOCK),).
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    seed = tl.load(seeds_ptr + index, mask=inside, other=0)
    choice = tl.load(choices_ptr + index, mask=inside, other=0).to(tl.uint32)
    position = tl.load(positions_ptr + index, mask=inside, other=0).to(tl.uint32)
    zero = position * 0
    word, _, _, _ = tl.philox(seed, position, zero, choice, zero)
    tl.store(out_ptr + index, (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10, mask=inside)


def uniforms(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    count = len(seeds)
    out = torch.empty(count, dtype=torch.float64, device=seeds.device)
    if count:
        uniforms_kernel[(cdiv(count, BLOCK),)](
            seeds, choices, positions, out, count, BLOCK=BLOCK, num_warps=4, **pdl_options(seeds.device)
        )
    return out
