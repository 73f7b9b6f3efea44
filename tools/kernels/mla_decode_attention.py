"""What of `ops/triton/mla_decode_attention.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from kernels.attention_problem import make_metadata, random
from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.mla_decode_attention import mla_decode_attention, mla_decode_attention_kernel


def _case(label: str, dtype: str, heads: int, short: bool = False) -> list[CompileCase]:
    pointer = f"*{dtype}:16"
    strides = ("q", "q_head", "kv", "out", "out_head", "table")
    arguments = {
        "q_ptr": pointer, "kv_ptr": pointer, "out_ptr": pointer, "partial_ptr": "*fp32:16", "lse_ptr": "*fp32:16",
        "arrived_ptr": "*i32:16", "table_ptr": "*i32:16", "rows_ptr": "*i64", "kv_len_ptr": "*i32",
        "first_ptr": "*i32:16", "entry_of_ptr": "*i32:16", "scale": "fp32", "n": "i32",
        **{f"{name}_stride": "i32:16" for name in strides},
        "HEADS": heads, "LATENT": 512, "ROPE": 64, "BLOCK_L": 512, "BLOCK_R": 64, "EXACT": dtype == "fp32",
    }  # fmt: skip
    return [
        CompileCase(
            kernel=mla_decode_attention_kernel,
            label=label,
            arguments=arguments,
            config="mla_decode_attention",
            sizes={"arch": architectures[-1], "heads": heads, "bytes": 4 if dtype == "fp32" else 2},
            architectures=architectures,
            short=short,
            before_wait="parts, rows and lengths: of the whole round",
        )
        for architectures in ((80, 89), (90, 100))
    ]


COMPILE_CASES = [
    *_case("DeepSeek-V2 Lite: 16 heads", "bf16", 16, short=True),
    *_case("DeepSeek-V3: 128 heads", "bf16", 128),
    *_case("float32", "fp32", 16),
]


def _problem(heads: int, dtype: torch.dtype) -> Callable[[torch.device], Callable[[], object]]:
    """64 contexts of 4096 tokens."""

    def make(device: torch.device) -> Callable[[], object]:
        entries, kv_len = (64, 4096) if device.type == "cuda" else (1, 32)
        metadata, slots = make_metadata(device, entries, kv_len)
        q = random(device, dtype, entries, heads, 576)
        kv = KvLayer(random(device, dtype, slots + 1, 1, 576), 0)
        out = torch.empty((entries, heads, 512), dtype=dtype, device=device)
        return lambda: mla_decode_attention(q, kv, metadata, 0.1, out)

    return make


def _tune(heads: int, up_to: Mapping[str, int], dtype: torch.dtype = torch.bfloat16) -> TuningCase:
    half = dtype.itemsize == 2
    return TuningCase(
        config="mla_decode_attention",
        sizes={"heads": heads, "bytes": dtype.itemsize},
        up_to=up_to,
        candidates=grid(
            BLOCK_H=(16, 32, 64) if half and heads > 16 else (16,),
            BLOCK_N=(32, 64) if half else (16,),
            num_warps=(4, 8),
            num_stages=(2, 3, 5) if half else (1, 2),
        ),
        make=_problem(heads, dtype),
    )


TUNING_CASES = [_tune(16, {"bytes": 2, "heads": 16}), _tune(128, {"bytes": 2}), _tune(16, {}, torch.float32)]
