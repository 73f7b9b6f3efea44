"""StarCoder2 (arXiv 2402.19173): a Llama with LayerNorm, biases everywhere, an MLP without a gate and a sliding window."""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import plain_mlp


class Starcoder2ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, build.at("self_attn"), index),
            build.norm("post_attention_layernorm"),
            plain_mlp(config, build.at("mlp"), "c_fc", "c_proj"),
        )
