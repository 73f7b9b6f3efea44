"""Phi-3-small (arXiv 2404.14219): layers with block-sparse attention between dense ones, a clamped and interleaved GEGLU,
LayerNorm, and the scales of muP (arXiv 2203.03466).
"""

from __future__ import annotations

import torch

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, Names, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.hf_configs.layer_norm import Phi3Small
from lightllm.ops.attention_spec import AttentionSpec, BlockSparsity
from lightllm.ops.gated_activation import clamped_swiglu
from lightllm.quantization.linear_spec import LinearSpec


class Phi3SmallForCausalLM(TpPartBaseModel):
    names = Names(norm="model.final_layernorm")

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        self.unused_tokens = torch.tensor(config.extra.unused_tokens, dtype=torch.int64, device=build.device)

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        extra: Phi3Small = config.extra
        weights, sparsity = build.at("self_attn"), None
        if not extra.dense_every or (index + 1) % extra.dense_every:
            step = 0 if extra.same_for_all_heads else max(1, extra.stride // build.config.num_heads)
            first = build.group.rank * config.num_heads
            heads = torch.arange(first, first + config.num_heads, dtype=torch.int32, device=build.device)
            sparsity = BlockSparsity(extra.block_size, extra.local_blocks, extra.stride, step * heads)
        spec = AttentionSpec(config.attention_scale, sparsity=sparsity)
        query_key_value = weights.fused_qkv_linear("query_key_value", "grouped")
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, query_key_value, "dense", spec=spec),
            build.norm("post_attention_layernorm"),
            Phi3SmallMLP(config, build.at("mlp")),
        )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return super().logits(x).index_fill_(1, self.unused_tokens, float("-inf"))


class Phi3SmallMLP:
    """gegelu: a SwiGLU of clamped inputs whose sigmoid, times 1.702, makes its silu nearly a gelu (arXiv 1606.08415)."""

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        self.limit = config.extra.gate_limit
        inner, hidden = build.config.intermediate_size, config.hidden_size
        gate_up = build.interleaved("up_proj", inner)
        self.up_proj = build.linear(LinearSpec((gate_up,), hidden, bias=config.mlp_bias))
        self.down_proj = build.row_linear("down_proj", inner, hidden, config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(clamped_swiglu(self.up_proj(x), self.limit, alpha=1.702))
