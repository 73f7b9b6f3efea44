"""gpt-oss (arXiv 2508.10925): experts in every layer, every other layer with a window, and attention sinks.

A sink is a score of each head that takes part in the softmax and adds no value. The experts' matrices are stacked, each as
[in, out], and the rows of gate and up take turns.
"""

from __future__ import annotations

import functools

import torch

from lightllm.layers.moe import MoE
from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.moe_config import ClampedSwiglu
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.clamped_swiglu import clamped_swiglu
from lightllm.ops.moe_experts import Expert, pack_experts
from lightllm.weights.freed_memory import give_back_freed_memory


class GptOssForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attn")
        sinks = weights.share(("sinks",), (build.config.num_heads,), 0).load(torch.float32)
        spec = AttentionSpec(config.attention_scale, window=config.window(index), sinks=sinks)
        qkv_proj = weights.qkv_linear("q_proj", "k_proj", "v_proj")
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(
                config, build.attention_backends, index, qkv_proj, weights.o_linear("o_proj"), spec=spec
            ),
            build.norm("post_attention_layernorm"),
            _experts(config, build.at("mlp")),
        )


def _experts(config: ModelConfig, build: Builder) -> MoE:
    shape, whole = config.moe, build.config.moe
    assert shape is not None and whole is not None
    count, hidden, width = shape.routing.num_experts, config.hidden_size, whole.width
    router = build.whole_linear("router", hidden, count, True)
    weights = build.at("experts")
    gate_up = weights.share(("gate_up_proj",), (count, hidden, 2 * width), 2)
    gate_up_bias = weights.share(("gate_up_proj_bias",), (count, 2 * width), 1).load()
    down = weights.share(("down_proj",), (count, width, hidden), 1)
    down_bias = weights.vector("down_proj_bias", (count, hidden)).to(build.dtype)

    def expert(number: int) -> Expert:
        give_back_freed_memory()
        columns, bias = gate_up.parts[0][number], gate_up_bias[number]
        halves = gate_up.view(columns[:, 0::2], columns[:, 1::2]).load().split(hidden)
        return Expert(
            gate_up.view(*(half.T.contiguous() for half in halves)),
            down.view(down.parts[0][number]).load().T.contiguous(),
            torch.cat((bias[0::2], bias[1::2])),
            # Every rank must have one, and only one may add it.
            down_bias[number] if build.group.rank == 0 else torch.zeros_like(down_bias[number]),
        )

    experts = build.keep(pack_experts(build.device, count, expert))
    swiglu: ClampedSwiglu = config.extra
    activation = functools.partial(clamped_swiglu, limit=swiglu.limit, alpha=swiglu.alpha)
    return MoE(router, shape.routing, None, experts, activation, None, build.group)
