"""StableLM 2 and StableLM 3B (arXiv 2402.17834): a Llama with LayerNorm and a rotation of a quarter of each head.

The 12B form computes attention and MLP side by side, and normalises each head of q and k with weights of its own.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import ParallelLayer, PreNormLayer
from lightllm.models.mlp import gated_mlp


class StableLmForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights, qk_norm = build.at("self_attn"), None
        if config.extra.qk_norm:
            qk_norm = weights.each_head_norm(
                lambda kind, head: weights.vector(f"{kind}_layernorm.norms.{head}.weight", (config.head_dim,))
            )
        norm = build.norm("input_layernorm")
        self_attn = Attention(config, weights, index, qk_norm=qk_norm)
        mlp = gated_mlp(config, build.at("mlp"))
        if config.extra.parallel:
            return ParallelLayer(norm, self_attn, mlp)
        return PreNormLayer(norm, self_attn, build.norm("post_attention_layernorm"), mlp)
