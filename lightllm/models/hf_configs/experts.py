"""Architectures with experts, and those with latent attention."""

from __future__ import annotations

import math
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.models.config import ModelConfig, read_llama_like, read_same_window, read_windows
from lightllm.models.config_fields import Fields
from lightllm.models.moe_config import ClampedSwiglu, MlaConfig, MoeConfig
from lightllm.models.rope_config import RopeConfig, read_rope
from lightllm.ops.moe_routing_spec import MoeRoutingSpec


def mixtral(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1e6, num_local_experts=8, num_experts_per_tok=2
    )
    fields = fields.spelt(num_experts="num_local_experts")
    layers = (True,) * fields.positive("num_hidden_layers")
    experts = MoeConfig(_routing(fields, normalise=True), fields.positive("intermediate_size"), layers)
    return read_llama_like(fields, architecture, windows=read_same_window(fields), moe=experts)


def qwen3_moe(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        num_key_value_heads=4, num_experts_per_tok=8, moe_intermediate_size=768, sliding_window=4096,
        num_experts=fields.get("num_local_experts", 128),  # as transformers 5 saves it
    )  # fmt: skip
    step, dense = fields.positive("decoder_sparse_step", 1), fields.get("mlp_only_layers", [])
    layers = tuple(
        (i + 1) % step == 0 and i not in dense for i in range(fields.positive("num_hidden_layers"))
    )
    routing = _routing(fields, normalise=fields.flag("norm_topk_prob"))
    experts = MoeConfig(routing, fields.positive("moe_intermediate_size"), layers)
    windows = read_same_window(fields) if fields.flag("use_sliding_window") else ()
    return read_llama_like(fields, architecture, windows=windows, moe=experts)


def _routing(fields: Fields, **differences: Any) -> MoeRoutingSpec:
    num_experts, top_k = fields.positive("num_experts"), fields.positive("num_experts_per_tok")
    return MoeRoutingSpec(num_experts, top_k, **differences)


def deepseek_v2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(topk_method="greedy", first_k_dense_replace=0, routed_scaling_factor=1.0)
    method = fields.get("topk_method")
    if method not in ("greedy", "group_limited_greedy") or fields.flag("norm_topk_prob"):
        raise InvalidModel(
            f"config.json: topk_method {method!r} with norm_topk_prob {fields.flag('norm_topk_prob')} is not supported."
        )
    return _deepseek(fields, architecture, _groups(fields) if method == "group_limited_greedy" else {})


def deepseek_v3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        n_group=8, topk_group=4, norm_topk_prob=True, first_k_dense_replace=3, routed_scaling_factor=2.5
    )
    scoring, method = fields.get("scoring_func", "sigmoid"), fields.get("topk_method", "noaux_tc")
    if (scoring, method) != ("sigmoid", "noaux_tc"):
        raise InvalidModel(
            f"config.json: scoring_func {scoring!r} with topk_method {method!r} is not supported."
        )
    routing = {"scoring": "sigmoid", "normalise": fields.flag("norm_topk_prob"), **_groups(fields)}
    more = fields.get("num_nextn_predict_layers", fields.get("num_mtp_layers", 0))
    return _deepseek(
        fields, architecture, routing, interleaved=fields.flag("rope_interleave", True), extra=more
    )


def _groups(fields: Fields) -> dict[str, int]:
    return {"groups": fields.positive("n_group"), "top_groups": fields.positive("topk_group")}


def _deepseek(
    fields: Fields, architecture: str, routing: dict[str, Any], interleaved: bool = True, extra: Any = None
) -> ModelConfig:
    """routing: of `MoeRoutingSpec`; extra: layers after the others, with which the model predicts more than one token."""
    stated = fields.get("num_local_experts")  # as transformers 5 saves it
    fields = (fields if stated is None else fields.with_defaults(n_routed_experts=stated)).spelt(
        num_experts="n_routed_experts"
    )
    shape = MlaConfig(
        latent=fields.positive("kv_lora_rank"),
        rope=fields.positive("qk_rope_head_dim"),
        nope=fields.positive("qk_nope_head_dim"),
        value=fields.positive("v_head_dim"),
        query_latent=0 if fields.get("q_lora_rank") is None else fields.positive("q_lora_rank"),
    )
    first, every = fields.get("first_k_dense_replace"), fields.positive("moe_layer_freq", 1)
    width = fields.positive("moe_intermediate_size")
    experts = MoeConfig(
        _routing(fields, scale=fields.number("routed_scaling_factor"), **routing),
        width,
        tuple(i >= first and i % every == 0 for i in range(fields.positive("num_hidden_layers"))),
        shared_width=width * (fields.get("n_shared_experts") or 0),
    )
    rope = read_rope(fields, shape.rope, interleaved)
    head_dim = shape.nope + shape.rope
    return read_llama_like(
        fields,
        architecture,
        num_kv_heads=1,
        head_dim=head_dim,
        attention_scale=_deepseek_mscale(rope) ** 2 * head_dim**-0.5,
        ropes=(rope,),
        moe=experts,
        mla=shape,
        extra=extra,
    )


def _deepseek_mscale(rope: RopeConfig) -> float:
    """YaRN's temperature of queries and of keys (arXiv 2309.00071, section 3.4), as far as it is not in the rotation."""
    all_dim, factor = rope.scaling.get("mscale_all_dim"), rope.scaling.get("factor", 1.0)
    return 0.1 * all_dim * math.log(factor) + 1.0 if all_dim and factor > 1 else 1.0


_GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""What the published files say; transformers takes it for those that say nothing."""


def gpt_oss(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        num_key_value_heads=8, head_dim=64, attention_bias=True, rms_norm_eps=1e-5, rope_theta=150000.0,
        sliding_window=128, num_local_experts=128, num_experts_per_tok=4,
    ).spelt(num_experts="num_local_experts")  # fmt: skip
    if not (fields.get("rope_scaling") or fields.get("rope_parameters")):
        fields = fields.with_defaults(rope_parameters=_GPT_OSS_ROPE)
    layers = fields.positive("num_hidden_layers")
    experts = MoeConfig(
        _routing(fields, scoring="top_k_softmax"), fields.positive("intermediate_size"), (True,) * layers
    )
    return read_llama_like(
        fields,
        architecture,
        norm="rms_norm_rounded_once",
        activation="clamped_swiglu",
        windows=read_windows(fields, range(0, layers, 2)),
        moe=experts,
        extra=ClampedSwiglu(fields.number("swiglu_limit", 7.0), fields.number("swiglu_alpha", 1.702)),
    )
