"""Qwen 1 (arXiv 2309.16609): a Llama with q, k, v in one biased tensor, and queries that grow with the logarithm of their
position beyond the context that it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, Names, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import gated_mlp


class QWenLMHeadModel(TpPartBaseModel):
    names = Names(embedding="transformer.wte", layers="transformer.h", norm="transformer.ln_f")

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("attn")
        c_attn, query_scale = weights.fused_qkv_linear("c_attn", "stacked"), log_n_scale(config.extra.log_n)
        # Named the other way round than elsewhere: w2 is the gate.
        return PreNormLayer(
            build.norm("ln_1"),
            Attention(config, weights, index, c_attn, "c_proj", query_scale=query_scale),
            build.norm("ln_2"),
            gated_mlp(config, build.at("mlp"), "w2", "w1", "c_proj"),
        )


def log_n_scale(length: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Queries at position p (from 0) are multiplied with log(p + 1) / log(length) where that is above 1; 0: none are."""
    if not length:
        return None
    return lambda positions: torch.log1p(positions.float()).div_(math.log(length)).clamp_(min=1.0)
