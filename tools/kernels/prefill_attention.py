"""What of `ops/triton/prefill_attention.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton

from kernels.attention_problem import make_metadata, random, spec_arguments
from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.prefill_attention import (
    LARGEST_GROUP,
    is_special,
    prefill_attention,
    prefill_attention_kernel,
)


def _case(
    label: str,
    dtype: str,
    heads: tuple[int, int],
    head_dim: int,
    value_dim: int = 0,
    dense: bool = False,
    short: bool = False,
    window: bool = False,
    coded: bool = False,
    **spec: Any,
) -> list[CompileCase]:
    """coded: KV memory of 8 bits; heads: query heads, KV heads; value_dim: if it is not head_dim; spec: what else of it is used, see `spec_arguments`.
    Three cases: before Hopper tiles are smaller, since accumulators share the registers with what is multiplied."""
    group, value_dim = heads[0] // heads[1], value_dim or head_dim
    block_d, block_v = triton.next_power_of_2(head_dim), triton.next_power_of_2(value_dim)
    pointer = f"*{dtype}:16"
    of_kv = "*i8:16" if coded else pointer
    strides = ("q", "q_head", "k", "k_head", "v", "v_head", "out", "out_head", "table")
    arguments = {
            "q_ptr": pointer, "k_ptr": of_kv, "v_ptr": of_kv, "scales_ptr": "*bf16:16" if coded else None, "out_ptr": pointer,
            "table_ptr": "*i32:16", "rows_ptr": "*i64", "start_ptr": "*i32", "kv_len_ptr": "*i32",
            "context_ptr": "*i32" if dense else None, "first_ptr": "*i32:16", "entry_of_ptr": "*i32:16",
            "scale": "fp32", "softcap": "fp32", "window": "i32", "n": "i32",
            **{f"{name}_stride": "i32:16" for name in strides},
            "scale_stride": "i32:16" if coded else 0, "CODED": coded,
            "GROUP": group, "BLOCK_G": min(group, LARGEST_GROUP),
            "KEY_DIM": head_dim, "VALUE_DIM": value_dim, "BLOCK_D": block_d, "BLOCK_V": block_v,
            "DENSE": dense, "WINDOW": window, "EXACT": dtype == "fp32", **spec_arguments(**spec),
        }  # fmt: skip
    special = is_special(group, min(group, LARGEST_GROUP), window, spec=bool(spec))
    sizes = {
        "head_dim": block_d, "bytes": 4 if dtype == "fp32" else 2, "special": special, "slots": int(not dense)
    }  # fmt: skip
    return [
        CompileCase(
            kernel=prefill_attention_kernel,
            label=label + (", dense" if dense else ""),
            arguments=arguments,
            config="prefill_codes" if coded else "prefill_attention",
            sizes={"arch": architectures[-1], **sizes},
            architectures=architectures,
            short=short,
        )
        for architectures in ((80, 89), (90,), (100,))
    ]


COMPILE_CASES = [
    *_case("Llama 3 8B: groups of 4, 128 wide", "bf16", (32, 8), 128, dense=True),
    *_case("Llama 3 8B: groups of 4, 128 wide", "bf16", (32, 8), 128, short=True),
    *_case("TinyLlama: groups of 8, 64 wide", "bf16", (32, 4), 64, dense=True),
    *_case("Qwen2 7B: groups of 7", "bf16", (28, 4), 128),
    *_case("Mistral 7B: window", "bf16", (32, 8), 128, window=True),
    *_case("Qwen3 0.6B, fp16", "fp16", (16, 8), 128, dense=True),
    *_case("gpt-oss: 64 wide, window, sinks", "bf16", (64, 8), 64, sinks=True, window=True),
    *_case("Phi-3 mini: 96 wide", "bf16", (32, 32), 96, dense=True),
    *_case("StableLM: 80 wide", "bf16", (32, 32), 80),
    *_case("DeepSeek: keys 192 wide, values 128", "bf16", (16, 16), 192, value_dim=128, dense=True),
    *_case("Gemma 2: 256 wide, soft cap, window", "bf16", (16, 8), 256, softcap=True, window=True),
    *_case("Gemma 3: 256 wide", "bf16", (8, 4), 256, dense=True),
    *_case("BLOOM: ALiBi", "bf16", (32, 32), 128, alibi=True),
    *_case("Falcon 7B: 71 heads share one, 64 wide", "bf16", (71, 1), 64),
    *_case("Phi-3 small: blocks left out", "bf16", (32, 8), 128, sparsity=(64, 16, 8)),
    *_case("Llama 3 8B: KV memory of 8 bits", "bf16", (32, 8), 128, coded=True, short=True),
    *_case("TinyLlama: KV memory of 8 bits", "bf16", (32, 4), 64, coded=True),
    *_case("Gemma 2: KV memory of 8 bits", "bf16", (16, 8), 256, coded=True, softcap=True, window=True),
    *_case("float32: KV memory of 8 bits", "fp32", (32, 8), 128, coded=True),
    *_case("float32", "fp32", (32, 8), 128),
    *_case("float32, 256 wide", "fp32", (16, 8), 256),
]


def _problem(
    head_dim: int, window: int, dtype: torch.dtype, dense: bool
) -> Callable[[torch.device], Callable[[], object]]:
    """Two prompts of 4096 tokens, 32 query heads of 8 KV heads."""

    def make(device: torch.device) -> Callable[[], object]:
        q_len = 4096 if device.type == "cuda" else 64
        metadata, slots = make_metadata(device, 2, q_len, q_len)
        kv_heads = 8 if device.type == "cuda" else 1
        q = random(device, dtype, slots, 32 if device.type == "cuda" else 2, head_dim)
        kv = KvLayer(random(device, dtype, slots + 1, 2 * kv_heads, head_dim), kv_heads)
        own = (kv.keys[:slots], kv.values[:slots]) if dense else None
        out, spec = torch.empty_like(q), AttentionSpec(head_dim**-0.5, window)
        return lambda: prefill_attention(AttentionCall(q, kv, metadata, spec, out, own))

    return make


def _tune(
    head_dim: int,
    up_to: Mapping[str, int],
    tiles: Sequence[tuple[int, int, int, int]],
    window: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    dense: bool = False,
) -> TuningCase:
    """tiles: BLOCK_M, BLOCK_N, warps, stages. Only what may be worth its seconds of compilation."""
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    special = int(window != 0)
    return TuningCase(
        config="prefill_attention",
        sizes={"head_dim": head_dim, "bytes": dtype.itemsize, "special": special, "slots": int(not dense)},
        up_to=up_to,
        candidates=[dict(zip(names, tile)) for tile in tiles],
        make=_problem(head_dim, window, dtype, dense),
    )


# Slot numbers take a part of the stages: of 3 or 4 two tiles of keys and values are left, of 5 or 6 three.
_DENSE_TILES = [(128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 3)]
_SLOT_TILES = [(128, 128, 8, 5), (128, 128, 8, 3), (128, 64, 8, 5), (128, 64, 8, 7), (64, 64, 4, 5)]
# Each bound includes the ones before it, so that neighbours with the same choice may become one entry.
TUNING_CASES = [
    _tune(64, {"bytes": 2, "head_dim": 64, "special": 0, "slots": 0}, _DENSE_TILES, dense=True),
    _tune(64, {"bytes": 2, "head_dim": 64, "special": 0}, _SLOT_TILES),
    _tune(128, {"bytes": 2, "head_dim": 128, "special": 0, "slots": 0}, _DENSE_TILES, dense=True),
    _tune(128, {"bytes": 2, "head_dim": 128, "special": 0}, _SLOT_TILES),
    _tune(128, {"bytes": 2, "head_dim": 128}, _SLOT_TILES[2:], window=1024),
    _tune(
        256,
        {"bytes": 2, "head_dim": 256},
        [(128, 32, 8, 3), (128, 32, 8, 5), (128, 64, 8, 2), (64, 64, 4, 3)],
    ),
    _tune(256, {}, [(16, 16, 8, 1), (32, 16, 8, 1), (16, 32, 8, 1)], dtype=torch.float32),
]
