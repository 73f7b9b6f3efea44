"""Keys and values into their KV slots: a block of heads of one token a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.launch import cdiv, launch, launch_config, next_power_of_2, pdl_options


@triton.jit
def copy_heads(
    source, source_head_stride, target, target_head_stride, first_head, heads, head_dim,
    HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """Copies heads [first_head, first_head + HEADS) of one token, as far as there are any; both are contiguous a head."""
    head = first_head + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HEAD_BLOCK)[None, :]
    inside = (head < heads) & (column < head_dim)
    values = tl.load(source + head * source_head_stride + column, mask=inside)
    tl.store(target + head * target_head_stride + column, values.to(target.dtype.element_ty), mask=inside)


@triton.jit
def write_kv_kernel(
    k_ptr, v_ptr, kv_ptr, slots_ptr,
    k_stride, k_head_stride, v_stride, v_head_stride, kv_stride, kv_head_stride,
    kv_heads, head_dim,
    HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """kv[slots[t], h] = k[t, h]; kv[slots[t], kv_heads + h] = v[t, h].

    Grid (T, ceil(kv_heads / HEADS)). Strides in elements; slot times stride needs 64 bits.
    """
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    target = kv_ptr + tl.load(slots_ptr + token).to(tl.int64) * kv_stride
    k_ptr += token * k_stride
    v_ptr += token * v_stride
    copy_heads(k_ptr, k_head_stride, target, kv_head_stride, first, kv_heads, head_dim, HEADS, HEAD_BLOCK)
    target += kv_heads * kv_head_stride
    copy_heads(v_ptr, v_head_stride, target, kv_head_stride, first, kv_heads, head_dim, HEADS, HEAD_BLOCK)


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    tokens, kv_heads, head_dim = k.shape
    data = kv.data
    if tokens == 0:
        return
    assert k.stride(2) == v.stride(2) == data.stride(2) == 1
    config = launch_config("write_kv", k.device, head_dim=head_dim)
    launch(
        write_kv_kernel, (tokens, cdiv(kv_heads, config["HEADS"])),
        k, v, data, slots,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), data.stride(0), data.stride(1),
        kv_heads, head_dim,
        HEAD_BLOCK=next_power_of_2(head_dim), **config, **pdl_options(k.device),
    )  # fmt: skip
