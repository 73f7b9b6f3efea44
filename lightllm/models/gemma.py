"""Gemma 2 (arXiv 2408.00118) and 3 (arXiv 2503.19786), text: norms before and after attention and MLP, whose weights are
what is added to 1; a scaled embedding; local layers between global ones. Gemma 2 caps scores and logits; Gemma 3
normalises q and k, and its local layers rotate with a theta of their own.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import SandwichLayer
from lightllm.models.mlp import gated_mlp

GLOBAL_ROPE, LOCAL_ROPE = 0, 1
"""Of Gemma 3, in `config.ropes`."""


class Gemma2ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attn")
        qk_norm, rope = None, GLOBAL_ROPE
        if len(config.ropes) > 1:
            qk_norm = weights.head_norm(("q_norm", "k_norm"), (config.num_heads, config.num_kv_heads))
            rope = LOCAL_ROPE if config.window(index) else GLOBAL_ROPE
        return SandwichLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, qk_norm=qk_norm, rope=rope),
            build.norm("post_attention_layernorm"),
            build.norm("pre_feedforward_layernorm"),
            gated_mlp(config, build.at("mlp")),
            build.norm("post_feedforward_layernorm"),
        )
