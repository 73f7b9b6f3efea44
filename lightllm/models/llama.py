"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3, arXiv 2407.21783).

Each layer: x += Attention(RMSNorm(x)); x += MLP(RMSNorm(x)), with rotary positions, grouped queries and SwiGLU.
"""

from __future__ import annotations

import torch

from lightllm.layers.attention import attention
from lightllm.layers.norm import RMSNorm
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.batch import Batch
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.ops.attention_form import AttentionForm
from lightllm.ops.rotary_and_write_kv import rotary_and_write_kv
from lightllm.ops.silu_and_mul import silu_and_mul


class LlamaForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return LlamaDecoderLayer(config, build, LlamaAttention(config, build.at("self_attn"), index))


class LlamaDecoderLayer:
    def __init__(self, config: ModelConfig, build: Builder, self_attn: LlamaAttention) -> None:
        self.input_layernorm = build.rms_norm("input_layernorm", config.hidden_size)
        self.self_attn = self_attn
        self.post_attention_layernorm = build.rms_norm("post_attention_layernorm", config.hidden_size)
        self.mlp = LlamaMLP(config, build.at("mlp"))

    def forward(self, x: torch.Tensor, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = self.self_attn.forward(x, batch)
        x = self.post_attention_layernorm.add(x, residual)
        return self.mlp.forward(x)


class LlamaAttention:
    def __init__(
        self, config: ModelConfig, build: Builder, layer: int, qk_norm: RMSNorm | None = None
    ) -> None:
        """qk_norm: of every query and key head, before the rotation; Llama has none."""
        self.layer, self.form = layer, AttentionForm(config.scale)
        self.qk_norm = qk_norm
        self.qk_heads = config.num_heads + config.num_kv_heads
        self.head_dim = config.head_dim
        width = build.config.num_heads * config.head_dim
        self.qkv_proj = build.qkv_linear("q_proj", "k_proj", "v_proj", bias=config.attention_bias)
        self.o_proj = build.row_linear("o_proj", width, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.rotary is not None and batch.plan is not None
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)
        qk, v = qkv[:, : self.qk_heads], qkv[:, self.qk_heads :]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        kv = batch.kv[self.layer]
        q = rotary_and_write_kv(qk, v, *batch.rotary, kv, batch.slots)
        return self.o_proj(attention(q, kv, batch.plan, self.form))


class LlamaMLP:
    def __init__(self, config: ModelConfig, build: Builder) -> None:
        hidden, inner = config.hidden_size, build.config.intermediate_size
        self.gate_up_proj = build.column_linear(("gate_proj", "up_proj"), hidden, inner, bias=config.mlp_bias)
        self.down_proj = build.row_linear("down_proj", inner, hidden, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu_and_mul(self.gate_up_proj(x)))
