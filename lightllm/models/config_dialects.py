"""How each architecture's config.json differs from Llama's: spelling, defaults, and what is fixed. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.models.config import ModelConfig, read_llama_like, read_windows
from lightllm.models.config_fields import Fields
from lightllm.models.rope_config import RopeConfig, make_rope, read_rope


def normalise(raw: Mapping[str, Any], architecture: str) -> ModelConfig:
    """The shape from the content of a config.json; raises `InvalidModel` that names the field."""
    return DIALECTS.get(architecture, read_llama_like)(Fields(raw), architecture)


def _qwen2(fields: Fields, architecture: str) -> ModelConfig:
    windows = _qwen_windows(fields)
    return read_llama_like(fields, architecture, qkv_bias=True, o_bias=False, windows=windows)


def _qwen3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(num_key_value_heads=32, head_dim=128)
    return read_llama_like(fields, architecture, windows=_qwen_windows(fields))


def _qwen_windows(fields: Fields) -> tuple[int, ...]:
    if not fields.flag("use_sliding_window"):
        return ()
    first, layers = fields.positive("max_window_layers", 28), fields.positive("num_hidden_layers")
    return read_windows(fields, range(first, layers))


def _mistral(fields: Fields, architecture: str) -> ModelConfig:
    return read_llama_like(fields, architecture, windows=read_windows(fields))


def _granite(fields: Fields, architecture: str) -> ModelConfig:
    return read_llama_like(
        fields,
        architecture,
        attention_scale=fields.number("attention_multiplier", 1.0),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0),
    )


def _olmo2(fields: Fields, architecture: str) -> ModelConfig:
    return read_llama_like(fields.with_defaults(rms_norm_eps=1e-5), architecture)


def _internlm(fields: Fields, architecture: str) -> ModelConfig:
    bias = fields.flag("bias", True)
    rotary = fields.get("rotary")
    ropes = read_rope(fields, _head_dim(fields))
    if isinstance(rotary, dict):  # {"base": 10000, "type": "dynamic"}; the factor is 1 where it is not said
        given = {
            "rope_theta": rotary.get("base"),
            "type": rotary.get("type"),
            "factor": rotary.get("factor", 1.0),
        }
        given["type"] = "default" if given["type"] == "origin" else given["type"]
        ropes = make_rope(fields, given, _head_dim(fields))
    return read_llama_like(fields, architecture, qkv_bias=bias, o_bias=bias, ropes=(ropes,))


def _internlm2(fields: Fields, architecture: str) -> ModelConfig:
    bias = fields.flag("bias", True)
    return read_llama_like(fields, architecture, qkv_bias=bias, o_bias=bias)


def _minicpm(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(tie_word_embeddings=True)
    base = fields.number("dim_model_base", 1.0)
    return read_llama_like(
        fields,
        architecture,
        embedding_scale=fields.number("scale_emb", 1.0),
        residual_scale=fields.number("scale_depth", 1.0) / math.sqrt(fields.positive("num_hidden_layers")),
        logits_scale=base / fields.positive("hidden_size"),
    )


def _phi3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(rms_norm_eps=1e-5, original_max_position_embeddings=4096)
    scaling = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    if scaling.get("type", scaling.get("rope_type")) == "yarn":
        scaling["rope_type"] = "longrope"  # as the first Phi-3 files call it
    rope = make_rope(fields, scaling, _head_dim(fields))
    return read_llama_like(fields, architecture, windows=read_windows(fields), ropes=(rope,))


def _gemma2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(head_dim=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    local = range(0, fields.positive("num_hidden_layers"), 2)
    return _gemma(fields, architecture, local, (read_rope(fields, fields.positive("head_dim")),))


def _gemma3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(head_dim=256)
    if fields.flag("use_bidirectional_attention"):
        raise InvalidModel("config.json: use_bidirectional_attention makes it an encoder.")
    period = fields.positive("sliding_window_pattern", 6)
    local = [layer for layer in range(fields.positive("num_hidden_layers")) if (layer + 1) % period]
    given = fields.get("rope_parameters") or {}
    fields = fields.with_defaults(rope_theta=1e6)
    whole = given.get("full_attention") or fields.get("rope_scaling") or {}
    sliding = given.get("sliding_attention") or {}
    sliding = {"rope_theta": fields.number("rope_local_base_freq", 10000.0), **sliding}
    head_dim = fields.positive("head_dim")
    ropes = (make_rope(fields, whole, head_dim), make_rope(fields, sliding, head_dim))
    return _gemma(fields, architecture, local, ropes)


def _gemma(
    fields: Fields, architecture: str, local: Container[int], ropes: tuple[RopeConfig, ...]
) -> ModelConfig:
    fields = fields.with_defaults(
        tie_word_embeddings=True, sliding_window=4096, hidden_activation="gelu_pytorch_tanh"
    )
    return read_llama_like(
        fields.spelt(hidden_act="hidden_activation"),
        architecture,
        norm="rms_norm_plus_one",
        ropes=ropes,
        windows=read_windows(fields, local),
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=fields.number("attn_logit_softcapping", 0.0),
        logits_softcap=fields.number("final_logit_softcapping", 0.0),
        embedding_scale=math.sqrt(fields.positive("hidden_size")),
    )


@dataclasses.dataclass(frozen=True)
class QkNorm:
    """Of Cohere and StableLM."""

    qk_norm: bool
    """Each head of q and k has a LayerNorm of its own."""
    parallel: bool
    """Attention and MLP side by side."""


def _cohere(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(tie_word_embeddings=True, layer_norm_eps=1e-5)
    return read_llama_like(
        fields,
        architecture,
        norm="layer_norm",
        norm_eps=fields.number("layer_norm_eps"),
        ropes=(read_rope(fields, _head_dim(fields), interleaved=True),),
        logits_scale=fields.number("logit_scale", 0.0625),
        extra=QkNorm(fields.flag("use_qk_norm"), parallel=True),
    )


def _stablelm(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(partial_rotary_factor=fields.get("rope_pct", 0.25))
    return read_llama_like(
        fields,
        architecture,
        norm="layer_norm",
        norm_bias=True,
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        qkv_bias=fields.flag("use_qkv_bias"),
        o_bias=False,
        extra=QkNorm(fields.flag("qk_layernorm"), fields.flag("use_parallel_residual")),
    )


def _glm(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        head_dim=128, partial_rotary_factor=0.5, attention_bias=True, rms_norm_eps=1.5625e-07
    )
    rope = read_rope(fields, fields.positive("head_dim"), interleaved=True)
    return read_llama_like(fields, architecture, o_bias=False, ropes=(rope,))


def _bloom(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.spelt(hidden_size="n_embed", num_hidden_layers="n_layer", num_attention_heads="n_head")
    fields = fields.with_defaults(
        tie_word_embeddings=True, intermediate_size=4 * fields.positive("hidden_size"), hidden_act="gelu_new"
    )
    if fields.flag("apply_residual_connection_post_layernorm"):
        raise InvalidModel("config.json: apply_residual_connection_post_layernorm is not supported.")
    return read_llama_like(
        fields, architecture, max_position_embeddings=fields.positive("seq_length", 2048), ropes=(),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5), **_LAYER_NORM_AND_BIASES,
    )  # fmt: skip


def _gpt_bigcode(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.spelt(
        hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
        max_position_embeddings="n_positions", hidden_act="activation_function", intermediate_size="n_inner",
    )  # fmt: skip
    hidden, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    fields = fields.with_defaults(
        tie_word_embeddings=True,
        intermediate_size=4 * hidden,
        hidden_act="gelu_pytorch_tanh",
        num_key_value_heads=1 if fields.flag("multi_query", True) else heads,
    )
    scale = (hidden // heads) ** -0.5 if fields.flag("scale_attn_weights", True) else 1.0
    eps = fields.number("layer_norm_epsilon", 1e-5)
    return read_llama_like(
        fields, architecture, ropes=(), attention_scale=scale, norm_eps=eps, **_LAYER_NORM_AND_BIASES
    )


def _starcoder2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh")
    if (
        fields.get("norm_type", "layer_norm") != "layer_norm"
        or fields.get("mlp_type", "default") != "default"
    ):
        raise InvalidModel("config.json: only norm_type layer_norm and mlp_type default are supported.")
    bias = fields.flag("use_bias", True)
    return read_llama_like(
        fields, architecture, windows=read_windows(fields), norm="layer_norm", norm_bias=True,
        norm_eps=fields.number("norm_epsilon", 1e-5), qkv_bias=bias, o_bias=bias, mlp_bias=bias,
    )  # fmt: skip


def _chatglm(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.spelt(
        num_hidden_layers="num_layers", vocab_size="padded_vocab_size", intermediate_size="ffn_hidden_size",
        head_dim="kv_channels", max_position_embeddings="seq_length", rms_norm_eps="layernorm_epsilon",
    )  # fmt: skip
    for name, expected in (
        ("rmsnorm", True),
        ("apply_residual_connection_post_layernorm", False),
        ("post_layer_norm", True),
    ):
        if fields.flag(name, expected) != expected:
            raise InvalidModel(f"config.json: {name} must be {str(expected).lower()}.")
    heads, head_dim = fields.positive("num_attention_heads"), fields.positive("head_dim")
    groups = fields.positive("multi_query_group_num", 1) if fields.flag("multi_query_attention") else heads
    bias = fields.flag("add_bias_linear")
    theta = 10000.0 * fields.number("rope_ratio", 1.0)
    return read_llama_like(
        fields.with_defaults(num_key_value_heads=groups),
        architecture,
        ropes=(RopeConfig(head_dim // 2, theta, {"rope_type": "default"}, interleaved=True),),
        qkv_bias=bias or fields.flag("add_qkv_bias"),
        o_bias=bias,
        mlp_bias=bias,
    )


def _qwen(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.spelt(
        head_dim="kv_channels", rms_norm_eps="layer_norm_epsilon", rope_theta="rotary_emb_base"
    ).with_defaults(head_dim=128)
    original = fields.positive("seq_length", 2048)
    kind = "qwen_dynamic" if fields.flag("use_dynamic_ntk") else "default"
    given = {"rope_type": kind, "original_max_position_embeddings": original}
    bias = not fields.flag("no_bias", True)
    return read_llama_like(
        fields,
        architecture,
        # Half of it belongs to the gate.
        intermediate_size=fields.positive("intermediate_size") // 2,
        ropes=(make_rope(fields, given, fields.positive("head_dim")),),
        qkv_bias=True,
        o_bias=bias,
        mlp_bias=bias,
        extra=Qwen1(original if fields.flag("use_logn_attn") else 0),
    )


@dataclasses.dataclass(frozen=True)
class Qwen1:
    """Of Qwen 1."""

    log_n: int
    """Queries beyond this position grow with its logarithm; 0: they do not."""


def _head_dim(fields: Fields) -> int:
    default = max(1, fields.positive("hidden_size") // fields.positive("num_attention_heads"))
    return fields.positive("head_dim", default)


_LAYER_NORM_AND_BIASES: dict[str, Any] = {
    "norm": "layer_norm", "norm_bias": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip

DIALECTS: dict[str, Callable[[Fields, str], ModelConfig]] = {
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "MistralForCausalLM": _mistral,
    "GraniteForCausalLM": _granite,
    "Olmo2ForCausalLM": _olmo2,
    "InternLMForCausalLM": _internlm,
    "InternLM2ForCausalLM": _internlm2,
    "MiniCPMForCausalLM": _minicpm,
    "Phi3ForCausalLM": _phi3,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "CohereForCausalLM": _cohere,
    "StableLmForCausalLM": _stablelm,
    "GlmForCausalLM": _glm,
    "Glm4ForCausalLM": _glm,
    "BloomForCausalLM": _bloom,
    "GPTBigCodeForCausalLM": _gpt_bigcode,
    "Starcoder2ForCausalLM": _starcoder2,
    "ChatGLMModel": _chatglm,
    "QWenLMHeadModel": _qwen,
}
"""Architectures that are not in here have Llama's config.json."""
