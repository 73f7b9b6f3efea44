"""Attention of a whole batch: decode rows and prefill chunks side by side."""

from __future__ import annotations

import torch

from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer


def attention(
    q: torch.Tensor,
    kv: KvLayer,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    backends: AttentionBackends,
    dense: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Every token over its context. Keys and values of the new tokens are already in `kv`.

    q: [T, heads, head_dim]; dense: the new tokens' rotated keys and values, see `AttentionBackend.prefill`. Returns
    [T, heads * head_dim].
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if metadata.num_decode:
        backends.decode_for(spec, kv).decode(q, kv, metadata, spec, out)
    if metadata.num_prefill:
        backends.prefill_for(spec, kv).prefill(q, kv, metadata, spec, out, dense)
    return out.view(q.shape[0], -1)
