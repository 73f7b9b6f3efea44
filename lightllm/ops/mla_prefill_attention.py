"""Multi-head latent attention of prefill chunks: contexts are expanded to keys and values of every head first.

    latents = mla_context(kv, metadata)                      [C, latent + rope]
    k, v = the layer's up-projection of them             [C, heads, key_dim], [C, heads, value_dim]
    mla_prefill_attention(q, k, v, metadata, scale, out)

C = sum of kv_len over the prefill entries. For many queries this needs fewer operations than the absorbed form.
"""

from __future__ import annotations

import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.torch import mla_attention as torch_impl


def mla_context(kv: KvLayer, metadata: AttentionMetadata) -> torch.Tensor:
    """What KV memory [slots + 1, 1, width] holds of the prefill entries' contexts, one after another: [C, width]."""
    if metadata.req_to_token.is_cuda:
        from lightllm.ops.triton import mla_prefill_attention as triton_impl

        return triton_impl.mla_context(kv, metadata)
    return torch_impl.mla_context(kv, metadata)


def mla_prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
) -> None:
    """out[t] = softmax(scale * q[t] Kᵀ) V for every token t of the prefill entries, causal as in `prefill_attention`.

    q: [T, heads, key_dim]; k: [C, heads, key_dim] and v: [C, heads, value_dim] of the contexts as `mla_context` orders
    them; out: [T, heads, value_dim]. Scores and softmax are float32.
    """
    if metadata.req_to_token.is_cuda:
        from lightllm.ops.triton import mla_prefill_attention as triton_impl

        triton_impl.mla_prefill_attention(q, k, v, metadata, scale, out)
    else:
        torch_impl.mla_prefill_attention(q, k, v, metadata, scale, out)
