"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B in their first format (arXiv 2406.12793): half of each head rotated in adjacent
pairs, two KV heads, biased q, k, v in one tensor, gate and up in one tensor.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, Names, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import fused_gated_mlp


class ChatGLMModel(TpPartBaseModel):
    names = Names(
        embedding="transformer.embedding.word_embeddings",
        layers="transformer.encoder.layers",
        norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
    )

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attention")
        query_key_value = weights.fused_qkv_linear("query_key_value", "stacked")
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, query_key_value, "dense"),
            build.norm("post_attention_layernorm"),
            fused_gated_mlp(config, build.at("mlp"), "dense_h_to_4h", "dense_4h_to_h"),
        )
