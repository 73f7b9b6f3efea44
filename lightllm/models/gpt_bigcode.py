"""StarCoder and SantaCoder (arXiv 2305.06161): learned positions, one KV head, LayerNorm, an MLP without a gate."""

from __future__ import annotations

import torch

from lightllm.errors import InvalidOption
from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, Names, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import plain_mlp
from lightllm.ops.batch import Batch


class GPTBigCodeForCausalLM(TpPartBaseModel):
    names = Names(embedding="transformer.wte", layers="transformer.h", norm="transformer.ln_f")

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        if build.max_len is not None and build.max_len > config.max_position_embeddings:
            raise InvalidOption(
                f"--max_req_total_len {build.max_len}: this model has learned {config.max_position_embeddings} positions.",
                "Lower it.",
            )
        super().__init__(config, build)
        shape = (config.max_position_embeddings, config.hidden_size)
        self.wpe = build.vector("transformer.wpe.weight", shape)

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("attn")
        layout = "stacked" if build.config.num_kv_heads == 1 else "grouped"
        c_attn = weights.fused_qkv_linear("c_attn", layout)
        return PreNormLayer(
            build.norm("ln_1"),
            Attention(config, weights, index, c_attn, "c_proj"),
            build.norm("ln_2"),
            plain_mlp(config, build.at("mlp"), "c_fc", "c_proj"),
        )

    def embed(self, batch: Batch) -> torch.Tensor:
        return super().embed(batch).add_(self.wpe.index_select(0, batch.positions))
