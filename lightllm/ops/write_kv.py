"""Writes what attention keeps of the new tokens into their KV slots as it is: without rotary positions, or rotated already."""

from __future__ import annotations

import torch

from lightllm.ops.kv_codes import quantize
from lightllm.ops.kv_layer import KvLayer


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    """Keys and values go to `kv` at `slots`, as codes where it holds codes.

    k, v: [T, kv_heads, head_dim], any strides; slots: int64 [T]. No slot but the last (which absorbs padding) may occur twice.
    """
    if k.is_cuda:
        from lightllm.ops.triton import write_codes, write_kv

        (write_kv.write_kv if kv.scales is None else write_codes.write_codes)(k, v, kv, slots)
        return
    if kv.scales is not None:
        codes, scales = quantize(torch.cat((k, v), 1), kv.format, kv.scales.shape[2])
        kv.data.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
        kv.scales.index_copy_(0, slots, scales)
        return
    kv.keys.index_copy_(0, slots, k.to(kv.data.dtype))
    kv.values.index_copy_(0, slots, v.to(kv.data.dtype))


def write_latent(latent: torch.Tensor, key: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    """[latent, key] of latent attention (DeepSeek-V2, arXiv 2405.04434) goes to `kv` at `slots`.

    latent: [T, latent], normalised; key: [T, 1, rope], the rotated key that all heads share; slots: int64 [T]. No slot
    but the last (which absorbs padding) may occur twice.
    """
    kv.data.index_copy_(0, slots, torch.cat((latent[:, None], key), -1).to(kv.data.dtype))
