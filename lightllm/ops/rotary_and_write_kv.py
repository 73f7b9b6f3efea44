"""Rotates queries and keys and writes keys and values into their KV slots."""

from __future__ import annotations

import torch

from lightllm.ops.torch import rotary as torch_impl


def rotary_and_write_kv(
    qk: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Returns the rotated queries [T, heads, head_dim]; rotated keys and the values go to `kv[slots]`.

    qk: [T, heads + kv_heads, head_dim], queries first; v: [T, kv_heads, head_dim]; cos, sin: [T, 1, head_dim];
    kv: [slots + 1, 2 * kv_heads, head_dim], keys first; slots: int64 [T]. No slot but the last (which absorbs
    padding) may occur twice.
    """
    kv_heads = v.shape[1]
    rotated = torch_impl.rotary_embedding(qk, cos, sin)
    heads = qk.shape[1] - kv_heads
    kv[:, :kv_heads].index_copy_(0, slots, rotated[:, heads:].to(kv.dtype))
    kv[:, kv_heads:].index_copy_(0, slots, v.to(kv.dtype))
    return rotated[:, :heads]
