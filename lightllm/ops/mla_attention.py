"""Multi-head latent attention over KV memory by slots (DeepSeek-V2, arXiv 2405.04434).

Decoding reads latents in the absorbed form. For prefill chunks contexts are expanded to keys and values of every head:

    latents = mla_context(kv, metadata)                      [C, latent + rope]
    k, v = the layer's up-projection of them             [C, heads, key_dim], [C, heads, value_dim]
    mla_prefill_attention(q, k, v, metadata, scale, out)

C = sum of kv_len over the prefill entries. For many queries this needs fewer operations than the absorbed form. A CPU
computes in float32, an entry at a time or short contexts together.
"""

from __future__ import annotations

import torch

from lightllm.ops.attention_contexts import context_of, contexts_of, gather_buffer
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer

_SCORES = 1 << 22
"""Scores that a prefill chunk holds at a time: 16 MiB of float32."""


def mla_decode_attention(
    q: torch.Tensor, kv: KvLayer, metadata: AttentionMetadata, scale: float, out: torch.Tensor
) -> None:
    """out[i] = softmax(scale * q[i] Cᵀ) C[:, :latent] over the context C of token i of the decode entries.

    The absorbed form: queries have been multiplied by the keys' up-projection, and the caller multiplies the result by
    the values'. q: [T, heads, latent + rope], the decode entries' tokens first; kv: [slots + 1, 1, latent + rope]: the
    normalised latent vector, then the rotated key that all heads share; out: [T, heads, latent]. Scores and softmax
    are float32. The new tokens are already in `kv`.
    """
    if metadata.req_to_token.is_cuda:
        from lightllm.ops.triton import mla_decode_attention as triton_impl

        triton_impl.mla_decode_attention(q, kv, metadata, scale, out)
        return
    metadata = metadata.decode_by_token()
    contexts = contexts_of(metadata, q.dtype, kv.bytes_per_slot)
    count, width = metadata.num_decode, out.shape[2]
    queries = q[:count].float() * scale
    padded = contexts.padded
    if padded is not None:
        latents = kv.data.index_select(0, padded.slots).view(count, padded.length, -1).float()
        scores = queries @ latents.transpose(1, 2)
        if padded.mask is not None:
            scores += padded.mask[:, :, 0]
        out[:count].copy_(scores.softmax(-1) @ latents[:, :, :width])
        return
    buffer = gather_buffer(kv.data, contexts)
    for entry, query, output in zip(contexts.decode, queries, out):
        latents = context_of(kv.data, entry, buffer)[:, 0].float()
        output.copy_((query @ latents.T).softmax(-1) @ latents[:, :width])


def mla_context(kv: KvLayer, metadata: AttentionMetadata) -> torch.Tensor:
    """What KV memory [slots + 1, 1, width] holds of the prefill entries' contexts, one after another: [C, width]."""
    if metadata.req_to_token.is_cuda:
        from lightllm.ops.triton import mla_prefill_attention as triton_impl

        return triton_impl.mla_context(kv, metadata)
    parts = [
        kv.data.narrow(0, entry.first_slot, entry.kv_len)
        if entry.slots is None
        else kv.data.index_select(0, entry.slots)
        for entry in contexts_of(metadata, kv.data.dtype, kv.bytes_per_slot).prefill
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[:, 0]


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
        return
    context = 0
    starts = metadata.q_start[metadata.num_decode :].tolist()
    for first, q_len, kv_len in zip(starts, *metadata.prefill_lens.tolist()):
        keys = k[context : context + kv_len].transpose(0, 1).float()
        values = v[context : context + kv_len].transpose(0, 1).float()
        context += kv_len
        block = max(_SCORES // (q.shape[1] * kv_len), 16)
        for start in range(0, q_len, block):
            stop = min(start + block, q_len)
            seen = kv_len - q_len + stop
            tokens = slice(first + start, first + stop)
            scores = (q[tokens].transpose(0, 1).float() * scale) @ keys[:, :seen].transpose(1, 2)
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device)
            scores.masked_fill_(hidden.triu_(seen - (stop - start) + 1), float("-inf"))
            out[tokens].copy_((scores.softmax(-1) @ values[:, :seen]).transpose(0, 1))
