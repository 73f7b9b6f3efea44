"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3, arXiv 2407.21783), and what differs from it in config.json only.

Each layer: h += Attention(RMSNorm(h)); h += MLP(RMSNorm(h)), with rotary positions, grouped queries and SwiGLU.
Mistral (arXiv 2310.06825) adds a sliding window, Qwen 2 (arXiv 2407.10671) biases, Granite scales.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import gated_mlp


class LlamaForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, build.at("self_attn"), index),
            build.norm("post_attention_layernorm"),
            gated_mlp(config, build.at("mlp")),
            config.residual_scale,
        )
