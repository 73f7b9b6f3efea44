"""What of `ops/triton/decode_attention.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

from kernels.attention_problem import make_metadata, random, spec_arguments
from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.decode_attention import decode_attention, decode_attention_kernel


def _case(
    label: str,
    dtype: str,
    heads: tuple[int, int],
    head_dim: int,
    short: bool = False,
    coded: bool = False,
    **spec: Any,
) -> CompileCase:
    """heads: query heads, KV heads; coded: KV memory of 8 bits; spec: what of it is used, see `spec_arguments`."""
    group = heads[0] // heads[1]
    block_h, block_d = max(triton.next_power_of_2(group), 16), triton.next_power_of_2(head_dim)
    pointer = f"*{dtype}:16"
    return CompileCase(
        kernel=decode_attention_kernel,
        label=label,
        arguments={
            "q_ptr": pointer, "kv_ptr": "*i8:16" if coded else pointer,
            "scales_ptr": "*bf16:16" if coded else None, "out_ptr": pointer, "partial_ptr": "*fp32:16", "lse_ptr": "*fp32:16",
            "arrived_ptr": "*i32:16", "table_ptr": "*i32:16", "rows_ptr": "*i64", "kv_len_ptr": "*i32",
            "first_ptr": "*i32:16", "entry_of_ptr": "*i32:16",
            "scale": "fp32", "softcap": "fp32", "window": "i32", "n": "i32",
            "q_stride": "i32:16", "q_head_stride": "i32:16", "kv_stride": "i32:16", "scale_stride": "i32:16" if coded else 0, "out_stride": "i32:16",
            "out_head_stride": "i32:16", "table_stride": "i32:16",
            "KV_HEADS": heads[1], "GROUP": group, "BLOCK_H": block_h, "HEAD_DIM": head_dim, "BLOCK_D": block_d,
            "CODED": coded, "EXACT": dtype == "fp32", **spec_arguments(**spec),
        },
        config="decode_codes" if coded else "decode_attention",
        sizes={"block_h": block_h, "head_dim": block_d, "bytes": 4 if dtype == "fp32" else 2},
        short=short,
        before_wait="parts, rows and lengths: of the whole round",
    )  # fmt: skip


COMPILE_CASES = [
    _case("Llama 3 8B: groups of 4, 128 wide", "bf16", (32, 8), 128, short=True),
    _case("Llama 2 7B: 32 heads, 128 wide", "bf16", (32, 32), 128),
    _case("Qwen3 0.6B, fp16", "fp16", (16, 8), 128),
    _case("Qwen2 7B: groups of 7", "bf16", (28, 4), 128),
    _case("gpt-oss: groups of 8, 64 wide, sinks", "bf16", (64, 8), 64, sinks=True),
    _case("Phi-3 mini: 96 wide", "bf16", (32, 32), 96),
    _case("StableLM: 80 wide", "bf16", (32, 32), 80),
    _case("192 wide", "bf16", (16, 4), 192),
    _case("Gemma 2: 256 wide, soft cap", "bf16", (16, 8), 256, softcap=True),
    _case("BLOOM: ALiBi", "bf16", (32, 32), 128, alibi=True),
    _case("StarCoder: 48 heads share one", "bf16", (48, 1), 128),
    _case("Falcon 7B: 71 heads share one, 64 wide", "bf16", (71, 1), 64),
    _case("Phi-3 small: blocks left out", "bf16", (32, 8), 128, sparsity=(64, 16, 8)),
    _case("Llama 3 8B: KV memory of 8 bits", "bf16", (32, 8), 128, short=True, coded=True),
    _case("TinyLlama: KV memory of 8 bits", "bf16", (32, 4), 64, coded=True),
    _case("Gemma 2: KV memory of 8 bits", "bf16", (16, 8), 256, coded=True, softcap=True),
    _case("float32: KV memory of 8 bits", "fp32", (32, 8), 128, coded=True),
    _case("float32", "fp32", (32, 8), 128),
    _case("float32, 256 wide", "fp32", (16, 8), 256),
]


def _problem(
    heads: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> Callable[[torch.device], Callable[[], object]]:
    """Half a gibibyte of keys and values, in contexts of 4096 tokens."""

    def make(device: torch.device) -> Callable[[], object]:
        kv_len = 4096 if device.type == "cuda" else 64
        token_bytes = 2 * heads[1] * head_dim * dtype.itemsize
        entries = max((1 << 29) // (token_bytes * kv_len), 1) if device.type == "cuda" else 1
        metadata, slots = make_metadata(device, entries, kv_len)
        q = random(device, dtype, entries, heads[0], head_dim)
        kv = KvLayer(random(device, dtype, slots + 1, 2 * heads[1], head_dim), heads[1])
        out, spec = torch.empty_like(q), AttentionSpec(head_dim**-0.5)
        return lambda: decode_attention(AttentionCall(q, kv, metadata, spec, out))

    return make


def _tune(
    heads: tuple[int, int], head_dim: int, up_to: Mapping[str, int], dtype: torch.dtype = torch.bfloat16
) -> TuningCase:
    half = dtype.itemsize == 2
    block_h = max(triton.next_power_of_2(heads[0] // heads[1]), 16)
    return TuningCase(
        config="decode_attention",
        sizes={"block_h": block_h, "head_dim": head_dim, "bytes": dtype.itemsize},
        up_to=up_to,
        candidates=grid(
            BLOCK_N=(32, 64, 128) if half else (16, 32),
            num_warps=(2, 4) if block_h == 16 and half else (4, 8),
            num_stages=(5, 7)
            if half
            else (3, 5),  # of 3 or 4 there is one tile of keys and values, of 5 or 6 two
        ),
        make=_problem(heads, head_dim, dtype),
    )


# Each bound includes the ones before it, so that neighbours with the same choice may become one entry.
TUNING_CASES = [
    _tune((32, 8), 64, {"bytes": 2, "head_dim": 64, "block_h": 16}),
    _tune((32, 8), 128, {"bytes": 2, "head_dim": 128, "block_h": 16}),
    _tune((48, 1), 128, {"bytes": 2, "head_dim": 128}),
    _tune((16, 8), 256, {"bytes": 2, "head_dim": 256}),
    _tune((16, 8), 256, {}, torch.float32),
]
