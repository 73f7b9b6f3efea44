"""What of `ops/triton/rotary.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.rotary import blocks, rotary_and_write_kv, rotary_kernel


def _case(
    label: str,
    head_dim: int,
    rotary_dim: int,
    norm: bool = False,
    interleaved: bool = False,
    write: bool = True,
    short: bool = False,
    weight: str = "*bf16:16",
) -> CompileCase:
    optional = "*bf16:16" if write else None
    return CompileCase(
        kernel=rotary_kernel,
        label=label,
        arguments={
            "qk_ptr": "*bf16:16", "v_ptr": optional, "cos_ptr": "*bf16:16", "sin_ptr": "*bf16:16",
            "weight_ptr": weight if norm else None, "q_out_ptr": "*bf16:16", "kv_ptr": optional,
            "slots_ptr": "*i64:16" if write else None,
            "qk_stride": "i32:16", "qk_head_stride": "i32:16", "v_stride": "i32:16", "v_head_stride": "i32:16",
            "angle_stride": "i32:16", "weight_head_stride": "i32:16", "q_out_stride": "i32:16",
            "q_out_head_stride": "i32:16", "kv_stride": "i32:16", "kv_head_stride": "i32:16",
            "heads": "i32:16", "kv_heads": "i32" if write else 0, "kept_heads": "i32", "qk_blocks": "i32", "eps": "fp32",
            "HEAD_DIM": head_dim, "ROTARY_DIM": rotary_dim, "INTERLEAVED": interleaved, "NORM": norm,
            "WRITE_KV": write, **blocks(head_dim, rotary_dim),
        },
        config="rotary",
        sizes={"head_dim": head_dim},
        short=short,
    )  # fmt: skip


COMPILE_CASES = [
    _case("heads 128 wide, KV write", 128, 128, short=True),
    _case("heads 128 wide, head norm, KV write", 128, 128, norm=True, short=True),
    _case("heads 256 wide, head norm, KV write", 256, 256, norm=True),
    _case("heads 256 wide, head norm of float32 weight, KV write", 256, 256, norm=True, weight="*fp32:16"),
    _case("heads 64 wide, KV write", 64, 64),
    _case("heads 80 wide, 20 rotated, head norm, KV write", 80, 20, norm=True, short=True),
    _case("heads 128 wide, 64 in adjacent pairs, KV write", 128, 64, interleaved=True),
    _case("heads 128 wide, no KV write", 128, 128, write=False),
]


def _problem(head_dim: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        tokens, heads, kv_heads = 64 if device.type == "cuda" else 1, 32, 8
        qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=device).bfloat16()
        cos, sin = torch.rand(2, tokens, 1, head_dim, device=device).bfloat16().unbind(0)
        kv = KvLayer(
            torch.zeros(tokens + 1, 2 * kv_heads, head_dim, dtype=torch.bfloat16, device=device), kv_heads
        )
        slots = torch.randperm(tokens, device=device)
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        return lambda: rotary_and_write_kv(qk, v, cos, sin, kv, slots)

    return make


TUNING_CASES = [
    TuningCase(
        config="rotary",
        sizes={"head_dim": head_dim},
        up_to={"head_dim": head_dim} if head_dim < 256 else {},
        candidates=grid(HEADS=(2, 4, 8, 16), num_warps=(1, 2, 4)),
        make=_problem(head_dim),
    )
    for head_dim in (64, 128, 256)
]
