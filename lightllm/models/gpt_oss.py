"""gpt-oss (arXiv 2508.10925): experts in every layer, every other layer with a window, and attention sinks.

A sink is a score of each head that takes part in the softmax and adds no value. The experts' matrices are stacked, each as
[in, out], and the rows of gate and up take turns.
"""

from __future__ import annotations

import functools

from lightllm.layers.moe import MoE
from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.moe_config import ClampedSwiglu
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.gated_activation import clamped_swiglu
from lightllm.quantization.linear_spec import LinearSpec, Stack


class GptOssForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attn")
        heads = build.config.num_heads
        sinks = weights.vector("sinks", (heads,), [weights.even_part(heads)]).float()
        spec = AttentionSpec(config.attention_scale, window=config.window(index), sinks=sinks)
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, spec=spec),
            build.norm("post_attention_layernorm"),
            _experts(config, build.at("mlp")),
        )


def _experts(config: ModelConfig, build: Builder) -> MoE:
    shape, whole = config.moe, build.config.moe
    assert shape is not None and whole is not None
    count, hidden, width = shape.routing.num_experts, config.hidden_size, whole.width
    router = build.whole_linear("router", hidden, count, True)
    weights = build.at("experts")
    gate_up = weights.interleaved("gate_up_proj", width)
    down = weights.row_spec("down_proj", width, hidden, True)
    experts = weights.experts(
        count,
        lambda number: LinearSpec((gate_up,), hidden, bias=True, stack=Stack(number, count)),
        lambda number: down._replace(stack=Stack(number, count)),
    )
    swiglu: ClampedSwiglu = config.extra
    activation = functools.partial(clamped_swiglu, limit=swiglu.limit, alpha=swiglu.alpha)
    return MoE(router, shape.routing, None, experts, activation, None, build.group)
