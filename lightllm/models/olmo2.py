"""OLMo 2 (arXiv 2501.00656): norms after attention and MLP instead of before, and one over all of q and of k."""

from __future__ import annotations

import torch

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.mlp import gated_mlp
from lightllm.ops.batch import Batch


class Olmo2ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return Olmo2DecoderLayer(config, build, index)


class Olmo2DecoderLayer:
    def __init__(self, config: ModelConfig, build: Builder, index: int) -> None:
        weights = build.at("self_attn")
        qk_norm = weights.whole_qk_norm("q_norm", "k_norm")
        self.self_attn = Attention(config, weights, index, qk_norm=qk_norm)
        self.post_attention_layernorm = build.norm("post_attention_layernorm")
        self.mlp = gated_mlp(config, build.at("mlp"))
        self.post_feedforward_layernorm = build.norm("post_feedforward_layernorm")

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        if x is not None:
            residual.add_(x)
        residual.add_(self.post_attention_layernorm(self.self_attn.forward(residual, batch)))
        return self.post_feedforward_layernorm(self.mlp.forward(residual))
