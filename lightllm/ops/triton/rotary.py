"""Norm of each query and key head, rotation, and the write into KV slots in one pass: a block of heads of one token a
program.

The head norm is optional, so is the KV memory: without it this is `rotary_embedding`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.launch import cdiv, launch, launch_config, next_power_of_2, pdl_options
from lightllm.ops.triton.write_kv import copy_heads


@triton.jit(do_not_specialize=["kept_heads"])
def rotary_kernel(
    qk_ptr, v_ptr, cos_ptr, sin_ptr, weight_ptr, q_out_ptr, kv_ptr, slots_ptr,
    qk_stride, qk_head_stride, v_stride, v_head_stride, angle_stride, weight_head_stride,
    q_out_stride, q_out_head_stride, kv_stride, kv_head_stride,
    heads, kv_heads, kept_heads, qk_blocks, eps,
    HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    WRITE_KV: tl.constexpr, HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """q_out[t, h] = rotate(norm(qk[t, h])) for h < kept_heads; kv[slots[t], h] = the same of the key heads, and the values.

    norm: x / sqrt(mean(x²) + eps) * weight[h]; rotate: see `_rotate_heads`. Grid (T, qk_blocks + ceil(kv_heads / HEADS)):
    the last blocks copy values. kept_heads: the query heads, or all. Strides in elements; a slot times the stride
    needs 64 bits.
    """
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    qk_ptr += token * qk_stride
    cos_ptr += token * angle_stride
    sin_ptr += token * angle_stride
    q_out_ptr += token * q_out_stride
    if WRITE_KV:
        kv_ptr += tl.load(slots_ptr + token).to(tl.int64) * kv_stride
        if block >= qk_blocks:
            copy_heads(
                v_ptr + token * v_stride, v_head_stride, kv_ptr + kv_heads * kv_head_stride, kv_head_stride,
                (block - qk_blocks) * HEADS, kv_heads, HEAD_DIM, HEADS, HEAD_BLOCK,
            )  # fmt: skip
        else:
            _rotate_heads(
                qk_ptr, cos_ptr, sin_ptr, weight_ptr, q_out_ptr, kv_ptr,
                qk_head_stride, weight_head_stride, q_out_head_stride, kv_head_stride,
                block * HEADS, heads, kv_heads, kept_heads, eps,
                HEAD_DIM, ROTARY_DIM, INTERLEAVED, NORM, True, HEADS, HALF_BLOCK, REST_BLOCK,
            )  # fmt: skip
    else:
        _rotate_heads(
            qk_ptr, cos_ptr, sin_ptr, weight_ptr, q_out_ptr, kv_ptr,
            qk_head_stride, weight_head_stride, q_out_head_stride, kv_head_stride,
            block * HEADS, heads, kv_heads, kept_heads, eps,
            HEAD_DIM, ROTARY_DIM, INTERLEAVED, NORM, False, HEADS, HALF_BLOCK, REST_BLOCK,
        )  # fmt: skip


@triton.jit
def _rotate_heads(  # long because: one pass over three parts of a head (two halves of the pairs, and the rest)
    source, cos_ptr, sin_ptr, weight_ptr, q_out, kv_row,
    head_stride, weight_head_stride, q_out_head_stride, kv_head_stride,
    first_head, heads, kv_heads, kept_heads, eps,
    HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    WRITE_KV: tl.constexpr, HEADS: tl.constexpr, HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
):  # fmt: skip
    """(a, b) -> (a cos - b sin, b cos + a sin) for the pairs of the first ROTARY_DIM elements; the rest passes.

    The pointers are those of one token.
    """
    HALF: tl.constexpr = ROTARY_DIM // 2
    head = first_head + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    first = pair * 2 if INTERLEAVED else pair
    second = pair * 2 + 1 if INTERLEAVED else pair + HALF
    rest = ROTARY_DIM + tl.arange(0, REST_BLOCK)[None, :]
    exists = head < heads + kv_heads
    inside = exists & (pair < HALF)
    rest_inside = exists & (rest < HEAD_DIM)

    source += head * head_stride
    a = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + second, mask=inside, other=0.0).to(tl.float32)
    if ROTARY_DIM < HEAD_DIM:
        c = tl.load(source + rest, mask=rest_inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1)
        if ROTARY_DIM < HEAD_DIM:
            squares += tl.sum(c * c, 1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        dtype: tl.constexpr = q_out.dtype.element_ty
        weights = weight_ptr + head * weight_head_stride
        a = _norm(a, scale, weights + first, inside, dtype)
        b = _norm(b, scale, weights + second, inside, dtype)
        if ROTARY_DIM < HEAD_DIM:
            c = _norm(c, scale, weights + rest, rest_inside, dtype)
    cos = tl.load(cos_ptr + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    real, imaginary = a * cos - b * sin, b * cos + a * sin

    q_out += head * q_out_head_stride
    _store(q_out + first, real, inside & (head < kept_heads))
    _store(q_out + second, imaginary, inside & (head < kept_heads))
    if ROTARY_DIM < HEAD_DIM:
        _store(q_out + rest, c, rest_inside & (head < kept_heads))
    if WRITE_KV:
        kv_row += (head - heads) * kv_head_stride
        _store(kv_row + first, real, inside & (head >= heads))
        _store(kv_row + second, imaginary, inside & (head >= heads))
        if ROTARY_DIM < HEAD_DIM:
            _store(kv_row + rest, c, rest_inside & (head >= heads))


@triton.jit
def _norm(x, scale, weight_ptr, inside, dtype: tl.constexpr):
    """x * scale * weight, rounded as `rms_norm` rounds it."""
    weight = tl.load(weight_ptr, mask=inside, other=0.0)
    x = x * scale
    if weight.dtype != tl.float32:
        x = x.to(dtype).to(tl.float32)
    return (x * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def _store(pointers, values, mask):
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


def rotary_embedding(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    return _launch(x, None, cos, sin, None, None, interleaved, None, 0.0, False)


def rotary_and_write_kv(
    qk: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    interleaved: bool = False,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    keep_keys: bool = False,
) -> torch.Tensor:
    return _launch(qk, v, cos, sin, kv.data, slots, interleaved, norm_weight, eps, keep_keys)


def _launch(
    qk: torch.Tensor,
    v: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: torch.Tensor | None,
    slots: torch.Tensor | None,
    interleaved: bool,
    norm_weight: torch.Tensor | None,
    eps: float,
    keep_keys: bool,
) -> torch.Tensor:
    tokens, total_heads, head_dim = qk.shape
    kv_heads = 0 if v is None else v.shape[1]
    heads = total_heads - kv_heads
    kept_heads = total_heads if keep_keys else heads
    q_out = torch.empty((tokens, kept_heads, head_dim), dtype=qk.dtype, device=qk.device)
    if tokens == 0:
        return q_out
    assert qk.stride(2) == 1 and cos.stride() == sin.stride() and cos.stride(2) == 1
    assert v is None or v.stride(2) == 1
    assert kv is None or kv.stride(2) == 1
    rotary_dim = cos.shape[2]
    config = launch_config("rotary", qk.device, head_dim=head_dim)
    qk_blocks = cdiv(total_heads, config["HEADS"])
    launch(
        rotary_kernel, (tokens, qk_blocks + cdiv(kv_heads, config["HEADS"])),
        qk, v, cos, sin, norm_weight, q_out, kv, slots,
        qk.stride(0), qk.stride(1), 0 if v is None else v.stride(0), 0 if v is None else v.stride(1),
        cos.stride(0), norm_weight.stride(0) if norm_weight is not None and norm_weight.dim() == 2 else 0,
        q_out.stride(0), q_out.stride(1), 0 if kv is None else kv.stride(0), 0 if kv is None else kv.stride(1),
        heads, kv_heads, kept_heads, qk_blocks, eps,
        HEAD_DIM=head_dim, ROTARY_DIM=rotary_dim, INTERLEAVED=interleaved, NORM=norm_weight is not None,
        WRITE_KV=kv is not None, **blocks(head_dim, rotary_dim), **config, **pdl_options(qk.device),
    )  # fmt: skip
    return q_out


def blocks(head_dim: int, rotary_dim: int) -> dict[str, int]:
    return {
        "HEAD_BLOCK": next_power_of_2(head_dim),
        "HALF_BLOCK": next_power_of_2(max(rotary_dim // 2, 1)),
        "REST_BLOCK": next_power_of_2(max(head_dim - rotary_dim, 1)),
    }
