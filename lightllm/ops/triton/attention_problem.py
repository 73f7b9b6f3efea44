"""Random batches to measure the attention kernels with: contexts of equal length whose slots are scattered."""

from __future__ import annotations

import numpy as np
import torch

from lightllm.ops.attention_metadata import AttentionMetadata


def make_metadata(
    device: torch.device, entries: int, kv_len: int, q_len: int = 1
) -> tuple[AttentionMetadata, int]:
    """q_len 1: entries that decode; otherwise prefill chunks. Also returns how many slots their contexts take."""
    slots = entries * kv_len
    # Runs of 64 tokens, as a memory that has been in use for a while gives them.
    run = 64 if kv_len % 64 == 0 else 1
    order = torch.randperm(slots // run, device=device, dtype=torch.int32)[:, None] * run
    table = (order + torch.arange(run, device=device, dtype=torch.int32)).view(entries, kv_len)
    metadata = AttentionMetadata(
        rows=torch.arange(entries, device=device),
        q_start=torch.arange(entries + 1, device=device, dtype=torch.int32) * q_len,
        kv_len=torch.full((entries,), kv_len, device=device, dtype=torch.int32),
        req_to_token=table,
        num_decode=entries if q_len == 1 else 0,
        num_tokens=entries * q_len,
        max_q_len=q_len,
        max_kv_len=kv_len,
        no_prefix=q_len == kv_len,
        prefill_lens=np.full((2, 0 if q_len == 1 else entries), [[q_len], [kv_len]]),
    )
    return metadata, slots


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Normal values; made in pieces, so that large KV memories need no second copy of themselves in float32."""
    tensor = torch.empty(shape, device=device, dtype=dtype)
    for piece in tensor.split(1 << 16):
        piece.normal_()
    return tensor
