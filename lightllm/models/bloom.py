"""BLOOM (arXiv 2211.05100): ALiBi instead of rotary positions, a LayerNorm after the embedding, an MLP without a gate."""

from __future__ import annotations

import math

import torch

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, Names, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import plain_mlp
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.batch import Batch


class BloomForCausalLM(TpPartBaseModel):
    names = Names(embedding="word_embeddings", layers="h", norm="ln_f")
    optional_prefix = "transformer."

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        self.word_embeddings_layernorm = build.norm("word_embeddings_layernorm")

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attention")
        slopes = alibi_slopes(build.config.num_heads)
        first = build.group.rank * config.num_heads
        spec = AttentionSpec(
            config.attention_scale, alibi_slopes=slopes[first : first + config.num_heads].to(build.device)
        )
        query_key_value = weights.fused_qkv_linear("query_key_value", "grouped")
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, query_key_value, "dense", spec=spec),
            build.norm("post_attention_layernorm"),
            plain_mlp(config, build.at("mlp"), "dense_h_to_4h", "dense_4h_to_h"),
        )

    def embed(self, batch: Batch) -> torch.Tensor:
        return self.word_embeddings_layernorm(super().embed(batch))


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """float32 [num_heads]: 2^(-8/n), 2^(-16/n), ... for the largest power of two n; the heads beyond it take the odd steps
    of the slopes for 2n (Press et al. 2021, arXiv 2108.12409, and its published code)."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
