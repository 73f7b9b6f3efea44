"""Mixtral (arXiv 2401.04088): a Llama, or Mistral, whose every MLP is a mixture of experts, two of eight for each token."""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.moe import moe


class MixtralForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, build.at("self_attn"), index),
            build.norm("post_attention_layernorm"),
            moe(config, build.at("block_sparse_moe"), names=("w1", "w3", "w2")),
        )
