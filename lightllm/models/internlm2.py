"""InternLM2 (arXiv 2403.17297): a Llama whose q, k and v are one tensor, grouped by KV head, and other names."""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, Names, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import gated_mlp


class InternLM2ForCausalLM(TpPartBaseModel):
    names = Names(embedding="model.tok_embeddings", head="output")

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("attention")
        return PreNormLayer(
            build.norm("attention_norm"),
            Attention(config, weights, index, weights.fused_qkv_linear("wqkv", "grouped"), "wo"),
            build.norm("ffn_norm"),
            gated_mlp(config, build.at("feed_forward"), "w1", "w3", "w2"),
        )
