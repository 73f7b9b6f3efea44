"""Head norm, rotation and KV write with a kernel of our own: see `kernels/rotary.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import rotary as at
from lightllm.ops.cpu.rows import RowKernels, float_bits
from lightllm.ops.kv_layer import KvLayer

_kernels = RowKernels("rotary", at.LENGTH, 1 << 16)


def rotary_and_write_kv(
    qk: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    interleaved: bool,
    weight: torch.Tensor | None,
    eps: float,
    keep_keys: bool,
) -> torch.Tensor | None:
    """None, and nothing done, where there is no kernel for it."""
    dtype, kernel = qk.dtype, _kernels.find(qk.dtype)
    (tokens, all_heads, head_dim), (qk_stride, qk_head_stride, qk_last) = qk.shape, qk.stride()
    (v_stride, v_head_stride, v_last), cos_strides = v.stride(), cos.stride()
    if kernel is None or head_dim > at.LARGEST_HEAD or v.dtype != dtype or cos.dtype != dtype:
        return None
    if not qk_last == v_last == cos_strides[2] == 1 or cos_strides != sin.stride():
        return None
    data = kv.data
    kv_stride, *inner_strides = data.stride()
    if not kv.holds(dtype) or inner_strides != [head_dim, 1] or slots.dtype != torch.int64:
        return None
    norm, norm_stride, norm_is_float32 = 0, 0, False
    if weight is not None:
        if weight.stride(-1) != 1 or weight.dtype not in (dtype, torch.float32):
            return None
        norm, norm_is_float32 = weight.data_ptr(), weight.dtype == torch.float32
        norm_stride = weight.stride(0) * weight.itemsize if weight.dim() == 2 else 0
    kv_heads, itemsize, slots = v.shape[1], qk.itemsize, slots.contiguous()
    heads, head_bytes = all_heads - kv_heads, head_dim * itemsize
    kept = all_heads if keep_keys else heads
    out = qk.new_empty(tokens, kept, head_dim)
    _kernels.run(
        kernel, tokens, (all_heads + kv_heads) * head_dim,
        qk.data_ptr(), qk_stride * itemsize, qk_head_stride * itemsize,
        v.data_ptr(), v_stride * itemsize, v_head_stride * itemsize,
        heads, kv_heads, head_dim, cos.shape[2], interleaved,
        cos.data_ptr(), sin.data_ptr(), cos_strides[0] * itemsize,
        norm, norm_stride, norm_is_float32, float_bits(eps),
        data.data_ptr(), kv_stride * itemsize, slots.data_ptr(),
        out.data_ptr(), kept * head_bytes, kept, head_bytes,
    )  # fmt: skip
    return out
