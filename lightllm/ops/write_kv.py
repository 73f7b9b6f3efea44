"""Writes keys and values into their KV slots as they are: for models without rotary positions."""

from __future__ import annotations

import torch

from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.torch import rotary as torch_impl


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    """Keys and values go to `kv` at `slots`.

    k, v: [T, kv_heads, head_dim], any strides; slots: int64 [T]. No slot but the last (which absorbs padding) may occur twice.
    """
    if k.is_cuda:
        from lightllm.ops.triton import write_kv as triton_impl

        return triton_impl.write_kv(k, v, kv, slots)
    return torch_impl.write_kv(k, v, kv, slots)
