"""Writes what multi-head latent attention keeps of a token into its KV slot (DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

import torch

from lightllm.ops.kv_layer import KvLayer


def write_latent(latent: torch.Tensor, key: torch.Tensor, kv: KvLayer, slots: torch.Tensor) -> None:
    """[latent, key] goes to `kv` at `slots`.

    latent: [T, latent], normalised; key: [T, 1, rope], the rotated key that all heads share; slots: int64 [T]. No slot
    but the last (which absorbs padding) may occur twice.
    """
    kv.data.index_copy_(0, slots, torch.cat((latent[:, None], key), -1).to(kv.data.dtype))
