"""Rotary position embedding; the common case (whole heads, half-split) in three passes over the heads."""

from __future__ import annotations

import torch

from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.torch.rms_norm import rms_norm


def rotary_embedding(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    rotary_dim = cos.shape[-1]
    half = rotary_dim // 2
    if interleaved:
        return _rotate_pairs(x, cos[..., :half], sin[..., :half])
    sin = sin[..., :half]
    if rotary_dim == x.shape[-1]:
        rotated, first, second = torch.mul(x, cos), x[..., :half], x[..., half:]
    else:
        rotated, first, second = x.clone(), x[..., :half], x[..., half:rotary_dim]
        rotated[..., :rotary_dim].mul_(cos)
    rotated[..., :half].addcmul_(second, sin, value=-1)
    rotated[..., half:rotary_dim].addcmul_(first, sin)
    return rotated


def _rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotary_dim = 2 * cos.shape[-1]
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    rotated = x.clone()
    rotated[..., 0:rotary_dim:2] = torch.mul(even, cos).addcmul_(odd, sin, value=-1)
    rotated[..., 1:rotary_dim:2] = torch.mul(odd, cos).addcmul_(even, sin)
    return rotated


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
    if norm_weight is not None:
        qk = rms_norm(qk, norm_weight, eps)
    heads = qk.shape[1] - v.shape[1]
    rotated = rotary_embedding(qk, cos, sin, interleaved)
    write_kv(rotated[:, heads:], v, kv, slots)
    return rotated if keep_keys else rotated[:, :heads]


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    kv.keys.index_copy_(0, slots, k.to(kv.data.dtype))
    kv.values.index_copy_(0, slots, v.to(kv.data.dtype))
