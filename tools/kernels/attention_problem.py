"""What the cases of the attention kernels share: random batches of contexts of equal length whose slots are scattered,
and the arguments that an `AttentionSpec` becomes."""

from __future__ import annotations

from typing import Any

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


def spec_arguments(
    softcap: bool = False,
    alibi: bool = False,
    sinks: bool = False,
    sparsity: tuple[int, int, int] = (0, 0, 0),
) -> dict[str, Any]:
    """Of a spec, what a `CompileCase` lists. sparsity: block size, local blocks, stride."""
    return {
        "slopes_ptr": "*fp32:16" if alibi else None,
        "sinks_ptr": "*fp32:16" if sinks else None,
        "offsets_ptr": "*i32:16" if sparsity[0] else None,
        "SOFTCAP": softcap,
        "ALIBI": alibi,
        "SINKS": sinks,
        **dict(zip(("SPARSE", "LOCAL", "STRIDE"), sparsity)),
    }
