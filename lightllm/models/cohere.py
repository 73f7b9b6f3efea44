"""Command-R and R+ (Cohere): attention and MLP side by side after one LayerNorm without bias; adjacent rotary pairs; scaled
logits. R+ normalises each head of q and k with weights of its own.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import ParallelLayer
from lightllm.models.mlp import gated_mlp


class CohereForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights, qk_norm = build.at("self_attn"), None
        if config.extra.qk_norm:
            whole = build.config
            per_head = {
                "q": weights.vector("q_norm.weight", (whole.num_heads, config.head_dim)),
                "k": weights.vector("k_norm.weight", (whole.num_kv_heads, config.head_dim)),
            }
            qk_norm = weights.each_head_norm(lambda kind, head: per_head[kind][head])
        return ParallelLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, qk_norm=qk_norm),
            gated_mlp(config, build.at("mlp")),
        )
