"""Keys and values into their KV slots as codes of 8 bits, see `ops/kv_codes.py`: a block of heads of one token a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.kv_codes import LEAST_SCALE
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.launch import cdiv, launch_config, next_power_of_2, pdl_options

_LEAST: tl.constexpr = tl.constexpr(LEAST_SCALE)
_ROUNDING: tl.constexpr = tl.constexpr(float(3 << 22))
"""Added to a float32 below 2 ** 22, and taken away again, it leaves the nearest integer."""


@triton.jit
def _write_heads(
    source, source_head_stride, codes, code_head_stride, scales, first_head, heads, head_dim, largest,
    HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """Heads [first_head, first_head + HEADS) of one token, as far as there are any."""
    head = first_head + tl.arange(0, HEADS)
    column = tl.arange(0, HEAD_BLOCK)[None, :]
    inside = (head[:, None] < heads) & (column < head_dim)
    x = tl.load(source + head[:, None] * source_head_stride + column, mask=inside, other=0.0).to(tl.float32)
    # What is not finite makes the scale so: maxima pass over NaN.
    scale = tl.max(tl.abs(x), 1) / largest + tl.sum(x * 0.0, 1)
    scale = tl.where(scale < _LEAST, _LEAST, scale)
    bits = scale.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536  # to the nearest bfloat16
    scale = bits.to(tl.float32, bitcast=True)
    y = x / scale[:, None]
    y = tl.minimum(tl.maximum(y, -largest), largest)
    code = (y + _ROUNDING) - _ROUNDING
    tl.store(codes + head[:, None] * code_head_stride + column, code.to(tl.int8), mask=inside)
    tl.store(scales + head, scale.to(tl.bfloat16), mask=head < heads)


@triton.jit
def write_codes_kernel(
    k_ptr, v_ptr, kv_ptr, scales_ptr, slots_ptr,
    k_stride, k_head_stride, v_stride, v_head_stride, kv_stride, kv_head_stride, scale_stride,
    kv_heads, head_dim, largest,
    HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """kv[slots[t], h] = round(k[t, h] / scale), scales[slots[t], h] = scale = max |k[t, h]| / largest; values behind the keys.

    Grid (T, ceil(kv_heads / HEADS)). Strides in elements; slot times stride needs 64 bits.
    """
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slots_ptr + token).to(tl.int64)
    codes, scales = kv_ptr + slot * kv_stride, scales_ptr + slot * scale_stride
    _write_heads(
        k_ptr + token * k_stride, k_head_stride, codes, kv_head_stride, scales,
        first, kv_heads, head_dim, largest, HEADS, HEAD_BLOCK,
    )  # fmt: skip
    _write_heads(
        v_ptr + token * v_stride, v_head_stride, codes + kv_heads * kv_head_stride, kv_head_stride, scales + kv_heads,
        first, kv_heads, head_dim, largest, HEADS, HEAD_BLOCK,
    )  # fmt: skip


def write_codes(k: torch.Tensor, v: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    tokens, kv_heads, head_dim = k.shape
    data, scales = kv.data, kv.scales
    if tokens == 0:
        return
    assert scales is not None and scales.shape[2] == 1 and scales.stride(1) == 1
    assert k.stride(2) == v.stride(2) == data.stride(2) == 1
    config = launch_config("write_kv", k.device, head_dim=head_dim)
    write_codes_kernel[(tokens, cdiv(kv_heads, config["HEADS"]))](
        k, v, data, scales, slots,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), data.stride(0), data.stride(1), scales.stride(0),
        kv_heads, head_dim, kv.format.largest,
        HEAD_BLOCK=next_power_of_2(head_dim), **config, **pdl_options(k.device),
    )  # fmt: skip
