"""Normalises, where a model does that, and rotates queries and keys; writes keys and values into their KV slots."""

from __future__ import annotations

import torch

from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.torch import rotary as torch_impl


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
    """Returns the rotated queries [T, heads, head_dim]; rotated keys and the values go to `kv` at `slots`.

    keep_keys: return the rotated keys as well, behind the queries: [T, heads + kv_heads, head_dim].

    qk: [T, heads + kv_heads, head_dim], queries first; v: [T, kv_heads, head_dim]; both any strides; cos, sin:
    [T, 1, rotary_dim] as for `rotary_embedding`; slots: int64 [T]. No slot but the last (which absorbs padding) may occur twice. interleaved: see `rotary_embedding`.
    norm_weight: [heads + kv_heads, head_dim], or [head_dim] for all alike: `rms_norm` of each query and key head with it
    and `eps` comes before the rotation.
    """
    if qk.is_cuda:
        from lightllm.ops.triton import rotary as triton_impl

        return triton_impl.rotary_and_write_kv(
            qk, v, cos, sin, kv, slots, interleaved, norm_weight, eps, keep_keys
        )
    return torch_impl.rotary_and_write_kv(
        qk, v, cos, sin, kv, slots, interleaved, norm_weight, eps, keep_keys
    )
