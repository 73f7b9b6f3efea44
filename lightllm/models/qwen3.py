"""Qwen3 (arXiv 2505.09388): a Llama whose queries and keys are normalised, head by head, before the rotation."""

from __future__ import annotations

import torch

from lightllm.layers.attention import attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.batch import Batch
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.llama import LlamaDecoderLayer
from lightllm.ops.rotary_and_write_kv import rotary_and_write_kv


class Qwen3ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return LlamaDecoderLayer(config, build, Qwen3Attention(config, build.at("self_attn"), index))


class Qwen3Attention:
    def __init__(self, config: ModelConfig, build: Builder, layer: int) -> None:
        self.layer, self.scale = layer, config.scale
        self.qk_heads = config.num_heads + config.num_kv_heads
        self.head_dim = config.head_dim
        width = build.config.num_heads * config.head_dim
        self.qkv_proj = build.qkv_linear("q_proj", "k_proj", "v_proj", bias=config.attention_bias)
        self.qk_norm = build.head_norm(("q_norm", "k_norm"), (config.num_heads, config.num_kv_heads))
        self.o_proj = build.row_linear("o_proj", width, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.rotary is not None and batch.plan is not None
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)
        qk, v = self.qk_norm(qkv[:, : self.qk_heads]), qkv[:, self.qk_heads :]
        kv = batch.kv[self.layer]
        q = rotary_and_write_kv(qk, v, *batch.rotary, kv, batch.slots)
        return self.o_proj(attention(q, kv, batch.plan, self.scale))
