"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): KV memory holds one short vector a token.

    q = [q_nope, rotate(q_rope)] of each head             from x, or from a latent of its own
    [latent, key] = kv_a_proj(x)                          KV memory: [norm(latent), rotate(key)]
    [k_nope, v] = kv_b_proj(norm(latent))                 k = [k_nope, rotate(key)] of each head

Prefill writes keys and values out as above. Decoding never does: q_nope · k_nope = (q_nope W_k) · latent, so queries are
multiplied by the keys' part of kv_b_proj, attention runs over latents, and its result is multiplied by the values' part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.layers.norm import RMSNorm
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.batch import Batch, Wanted
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.linear import PlainLinear
from lightllm.ops.mla_attention import mla_context, mla_decode_attention, mla_prefill_attention
from lightllm.ops.rotary import rotary_embedding
from lightllm.ops.write_kv import write_latent

EXPANDED_TOKENS = 16384
"""Contexts are expanded together up to so many tokens, or one that is longer: cached prefixes may make those of a round
many times as long as its new tokens."""
_LATENT_NORM_EPS = 1e-6
"""Of the norms of latents, whatever config.json says of the others."""


class LatentAttention:
    """Heads are split over ranks; what makes the latents, and KV memory, is the same on all of them."""

    def __init__(self, config: ModelConfig, build: Builder, layer: int) -> None:
        assert config.mla is not None
        self.layer, self.shape, self.scale = layer, config.mla, config.attention_scale
        self.interleaved = config.ropes[0].interleaved
        shape, hidden, heads = config.mla, config.hidden_size, build.config.num_heads
        self.queries = _queries(config, build)
        self.kv_a_proj = build.whole_linear(
            "kv_a_proj_with_mqa", hidden, shape.latent + shape.rope, config.qkv_bias
        )
        self.kv_a_layernorm = _latent_norm(build, "kv_a_layernorm", shape.latent)
        spec = build.column_spec(("kv_b_proj",), shape.latent, heads * (shape.nope + shape.value))
        kv_b = build.dense(spec, build.activation_dtype)
        self.kv_b_proj = build.keep(PlainLinear(kv_b, None))
        of_heads = kv_b.view(config.num_heads, shape.nope + shape.value, shape.latent)
        self.up_k, self.up_v = of_heads[:, : shape.nope], of_heads[:, shape.nope :]
        self.o_proj = build.row_linear("o_proj", heads * shape.value, hidden, config.o_bias)

    def forward(self, x: torch.Tensor, batch: Batch, wanted: Wanted | None = None) -> torch.Tensor:
        """x: [T, hidden]. Returns [T, hidden], added up over all ranks; with `wanted` [K, hidden], of these tokens."""
        metadata, shape, kv = batch.attention, self.shape, batch.kv[self.layer]
        cos, sin = batch.rotary[0]
        q = self.queries(x).view(len(x), -1, shape.nope + shape.rope)
        q[..., shape.nope :] = rotary_embedding(q[..., shape.nope :], cos, sin, self.interleaved)
        compressed = self.kv_a_proj(x)
        key = rotary_embedding(compressed[:, None, shape.latent :], cos, sin, self.interleaved)
        latent = self.kv_a_layernorm(compressed[:, : shape.latent])
        write_latent(latent, key, kv, batch.slots)
        out = torch.empty((*q.shape[:2], shape.value), dtype=q.dtype, device=q.device)
        if metadata.num_decode:
            count = metadata.num_decode_tokens
            self._decode(q[:count], kv, metadata, out[:count])
        if metadata.num_prefill:
            self._prefill(q, kv, metadata, out)
        if wanted is not None:
            if not len(wanted.tokens):
                return x[:0]
            out = out.index_select(0, wanted.tokens)
        return self.o_proj(out.flatten(1))

    def _decode(self, q: torch.Tensor, kv: KvLayer, metadata: AttentionMetadata, out: torch.Tensor) -> None:
        nope, rope = q.split((self.shape.nope, self.shape.rope), -1)
        absorbed = torch.bmm(nope.transpose(0, 1), self.up_k).transpose(0, 1)
        attended = torch.empty_like(absorbed, memory_format=torch.contiguous_format)
        mla_decode_attention(torch.cat((absorbed, rope), -1), kv, metadata, self.scale, attended)
        out.copy_(torch.bmm(attended.transpose(0, 1), self.up_v.transpose(1, 2)).transpose(0, 1))

    def _prefill(self, q: torch.Tensor, kv: KvLayer, metadata: AttentionMetadata, out: torch.Tensor) -> None:
        for piece in metadata.prefill_pieces(EXPANDED_TOKENS):
            latent, key = mla_context(kv, piece).to(q.dtype).split((self.shape.latent, self.shape.rope), -1)
            both = self.kv_b_proj(latent).view(len(latent), q.shape[1], -1)
            nope, values = both.split((self.shape.nope, self.shape.value), -1)
            keys = torch.cat((nope, key[:, None].expand(-1, q.shape[1], -1)), -1)
            mla_prefill_attention(q, keys, values, piece, self.scale, out)


def _queries(config: ModelConfig, build: Builder) -> Callable[[torch.Tensor], torch.Tensor]:
    """From [T, hidden] to [T, this rank's heads * (nope + rope)], a new tensor."""
    shape = config.mla
    assert shape is not None
    size = build.config.num_heads * (shape.nope + shape.rope)
    if not shape.query_latent:
        return build.column_linear(("q_proj",), config.hidden_size, size, False)
    down = build.whole_linear("q_a_proj", config.hidden_size, shape.query_latent, config.qkv_bias)
    norm = _latent_norm(build, "q_a_layernorm", shape.query_latent)
    up = build.column_linear(("q_b_proj",), shape.query_latent, size, False)
    return lambda x: up(norm(down(x)))


def _latent_norm(build: Builder, name: str, size: int) -> RMSNorm:
    return build.keep(RMSNorm(build.vector(f"{name}.weight", (size,)), _LATENT_NORM_EPS))
