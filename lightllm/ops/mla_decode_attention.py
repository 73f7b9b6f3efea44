"""Multi-head latent attention of one new token per request over its context (DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.torch import mla_attention as torch_impl


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
    else:
        torch_impl.mla_decode_attention(q, kv, metadata, scale, out)
