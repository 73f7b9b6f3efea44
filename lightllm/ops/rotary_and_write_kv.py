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
    interleaved: bool = False,
) -> torch.Tensor:
    """Returns the rotated queries [T, heads, head_dim]; rotated keys and the values go to `kv[slots]`.

    qk: [T, heads + kv_heads, head_dim], queries first; v: [T, kv_heads, head_dim]; both any strides; cos, sin:
    [T, 1, rotary_dim] as for `rotary_embedding`; kv: [slots + 1, 2 * kv_heads, head_dim], keys first; slots: int64
    [T]. No slot but the last (which absorbs padding) may occur twice. interleaved: see `rotary_embedding`.
    """
    return torch_impl.rotary_and_write_kv(qk, v, cos, sin, kv, slots, interleaved)
