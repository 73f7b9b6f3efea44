"""ChatGLM and Qwen 1: published with code of their own, in names of their own."""

from __future__ import annotations

import dataclasses

from lightllm.errors import InvalidModel
from lightllm.models.config import ModelConfig, read_llama_like
from lightllm.models.config_fields import Fields
from lightllm.models.rope_config import RopeConfig, make_rope


def chatglm(fields: Fields, architecture: str) -> ModelConfig:
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


@dataclasses.dataclass(frozen=True)
class Qwen1:
    """Of Qwen 1."""

    log_n: int
    """Queries beyond this position grow with its logarithm; 0: they do not."""


def qwen(fields: Fields, architecture: str) -> ModelConfig:
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
