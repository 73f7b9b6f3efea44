"""DeepSeek-V2 (arXiv 2405.04434) and -V3 (arXiv 2412.19437): latent attention, and experts beside one shared MLP.

V3's router has a bias for each expert, which takes part in the choice and not in the weights. The layers with which V3
predicts several tokens at once, after the others, are not read.
"""

from __future__ import annotations

import torch

from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import FeedForward, PreNormLayer
from lightllm.models.mla import LatentAttention
from lightllm.models.mlp import gated_mlp
from lightllm.models.moe import float32_router, moe


class DeepseekV2ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return PreNormLayer(
            build.norm("input_layernorm"),
            LatentAttention(config, build.at("self_attn"), index),
            build.norm("post_attention_layernorm"),
            self.make_mlp(config, build.at("mlp"), index),
        )

    def make_mlp(self, config: ModelConfig, build: Builder, index: int) -> FeedForward:
        shape = config.moe
        if shape is None or not shape.layers[index]:
            return gated_mlp(config, build)
        count = shape.routing.num_experts
        return moe(
            config, build, router=float32_router(build.at("gate"), count), bias=self.bias(build, count)
        )

    def bias(self, build: Builder, num_experts: int) -> torch.Tensor | None:
        """float32 [num_experts]: see `choose_experts`."""
        return None


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    def __init__(self, config: ModelConfig, build: Builder) -> None:
        for index in range(config.num_layers, config.num_layers + config.extra):
            build.tensors.reader.ignore_under(f"{self.names.layers}.{index}.")
        super().__init__(config, build)

    def bias(self, build: Builder, num_experts: int) -> torch.Tensor | None:
        return build.float32("gate.e_score_correction_bias", (num_experts,))
