"""Llama with another default, bias, scale or window, or with other tensors under the same config.json."""

from __future__ import annotations

import math

from lightllm.errors import InvalidModel
from lightllm.models.config import ModelConfig, read_llama_like, read_same_window, read_windows
from lightllm.models.config_fields import Fields, head_dim_of
from lightllm.models.rope_config import make_rope, read_rope, stated_rope


def qwen2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=32)
    return read_llama_like(fields, architecture, qkv_bias=True, o_bias=False, windows=_qwen_windows(fields))


def qwen3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=32, head_dim=128)
    return read_llama_like(fields, architecture, windows=_qwen_windows(fields))


def _qwen_windows(fields: Fields) -> tuple[int, ...]:
    layers, first = fields.positive("num_hidden_layers"), fields.positive("max_window_layers", 28)
    if fields.flag("use_sliding_window"):
        return read_windows(fields.with_defaults(sliding_window=4096), range(first, layers))
    if "sliding_attention" in (fields.get("layer_types") or ()):
        raise InvalidModel(
            "config.json: layer_types calls layers sliding_attention, use_sliding_window is false."
        )
    return ()


def mistral(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=8, sliding_window=4096)
    return read_llama_like(fields, architecture, windows=read_same_window(fields))


def granite(fields: Fields, architecture: str) -> ModelConfig:
    return read_llama_like(
        fields,
        architecture,
        attention_scale=fields.number("attention_multiplier", 1.0),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0),
    )


def olmo2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(rms_norm_eps=1e-5)
    return read_llama_like(fields, architecture, norm="rms_norm_rounded_once")


def internlm(fields: Fields, architecture: str) -> ModelConfig:
    bias = fields.flag("bias", True)
    rotary = fields.get("rotary")
    ropes = read_rope(fields, head_dim_of(fields))
    if isinstance(rotary, dict):  # {"base": 10000, "type": "dynamic"}; the factor is 1 where it is not said
        given = {
            "rope_theta": rotary.get("base"),
            "type": rotary.get("type"),
            "factor": rotary.get("factor", 1.0),
        }
        given["type"] = "default" if given["type"] == "origin" else given["type"]
        ropes = make_rope(fields, given, head_dim_of(fields))
    return read_llama_like(fields, architecture, qkv_bias=bias, o_bias=bias, ropes=(ropes,))


def internlm2(fields: Fields, architecture: str) -> ModelConfig:
    bias = fields.flag("bias", True)
    return read_llama_like(fields, architecture, qkv_bias=bias, o_bias=bias)


def minicpm(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(tie_word_embeddings=True)
    base = fields.number("dim_model_base", 1.0)
    return read_llama_like(
        fields,
        architecture,
        embedding_scale=fields.number("scale_emb", 1.0),
        residual_scale=fields.number("scale_depth", 1.0) / math.sqrt(fields.positive("num_hidden_layers")),
        logits_scale=base / fields.positive("hidden_size"),
    )


def phi3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(rms_norm_eps=1e-5, original_max_position_embeddings=4096)
    scaling = stated_rope(fields)
    if scaling.get("rope_type", scaling.get("type")) == "yarn":
        scaling["rope_type"] = "longrope"  # as the first Phi-3 files call it
    rope = make_rope(fields, scaling, head_dim_of(fields))
    return read_llama_like(fields, architecture, windows=read_same_window(fields), ropes=(rope,))


def glm(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        head_dim=128,
        partial_rotary_factor=0.5,
        attention_bias=True,
        rms_norm_eps=1.5625e-07,
        num_key_value_heads=2,
    )
    rope = read_rope(fields, fields.positive("head_dim"), interleaved=True)
    return read_llama_like(fields, architecture, o_bias=False, ropes=(rope,))
