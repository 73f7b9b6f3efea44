"""Phi-3 mini and medium (arXiv 2404.14219): a Llama whose q, k, v and whose gate and up are one tensor each.

Its 4k form has a sliding window, its 128k form longrope.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import fused_gated_mlp


class Phi3ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attn")
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, weights.fused_qkv_linear("qkv_proj", "stacked")),
            build.norm("post_attention_layernorm"),
            fused_gated_mlp(config, build.at("mlp")),
        )
