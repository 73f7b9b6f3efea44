"""Models with LayerNorm: Cohere, StableLM, BLOOM, StarCoder 1 and 2, Phi-3-small."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.models.config import ModelConfig, read_llama_like, read_same_window
from lightllm.models.config_fields import Fields, head_dim_of
from lightllm.models.rope_config import make_rope, read_rope

_LAYER_NORM_AND_BIASES: dict[str, Any] = {
    "norm": "layer_norm", "norm_bias": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class QkNorm:
    """Of Cohere and StableLM."""

    qk_norm: bool
    """Each head of q and k has a LayerNorm of its own."""
    parallel: bool
    """Attention and MLP side by side."""


def cohere(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(tie_word_embeddings=True, layer_norm_eps=1e-5, rope_theta=500000.0)
    return read_llama_like(
        fields,
        architecture,
        norm="layer_norm",
        norm_eps=fields.number("layer_norm_eps"),
        ropes=(read_rope(fields, head_dim_of(fields), interleaved=True),),
        logits_scale=fields.number("logit_scale", 0.0625),
        extra=QkNorm(fields.flag("use_qk_norm"), parallel=True),
    )


def stablelm(fields: Fields, architecture: str) -> ModelConfig:
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


def bloom(fields: Fields, architecture: str) -> ModelConfig:
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


def gpt_bigcode(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.spelt(
        hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
        max_position_embeddings="n_positions", hidden_act="activation_function", intermediate_size="n_inner",
    )  # fmt: skip
    hidden, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    fields = fields.with_defaults(
        tie_word_embeddings=True, intermediate_size=4 * hidden, hidden_act="gelu_pytorch_tanh"
    )
    scale = (hidden // heads) ** -0.5 if fields.flag("scale_attn_weights", True) else 1.0
    eps = fields.number("layer_norm_epsilon", 1e-5)
    kv_heads = 1 if fields.flag("multi_query", True) else heads
    return read_llama_like(
        fields, architecture, ropes=(), num_kv_heads=kv_heads, attention_scale=scale, norm_eps=eps,
        **_LAYER_NORM_AND_BIASES,
    )  # fmt: skip


def starcoder2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh", num_key_value_heads=2
    )
    if (
        fields.get("norm_type", "layer_norm") != "layer_norm"
        or fields.get("mlp_type", "default") != "default"
    ):
        raise InvalidModel("config.json: only norm_type layer_norm and mlp_type default are supported.")
    bias = fields.flag("use_bias", True)
    return read_llama_like(
        fields, architecture, windows=read_same_window(fields), norm="layer_norm", norm_bias=True,
        norm_eps=fields.number("norm_epsilon", 1e-5), qkv_bias=bias, o_bias=bias, mlp_bias=bias,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Phi3Small:
    block_size: int
    local_blocks: int
    stride: int
    same_for_all_heads: bool
    dense_every: int
    """Each layer with this number is dense; 0: none is."""
    gate_limit: float
    unused_tokens: tuple[int, ...]
    """Never chosen."""


def phi3_small(fields: Fields, architecture: str) -> ModelConfig:
    if fields.get("hidden_act", "gegelu") != "gegelu":
        raise InvalidModel("config.json: hidden_act must be gegelu.")
    fields = fields.spelt(
        intermediate_size="ff_intermediate_size", rope_theta="rope_embedding_base",
    ).with_defaults(tie_word_embeddings=True, rope_embedding_base=1e6)  # fmt: skip
    scale = head_dim_of(fields) ** -0.5
    if fields.flag("mup_use_scaling", True):
        scale = fields.number("mup_attn_multiplier", 1.0) / head_dim_of(fields)
    given = dict(fields.get("rope_scaling") or {})
    if not given and fields.number("rope_position_scale", 1.0) != 1:
        given = {"rope_type": "linear", "factor": fields.number("rope_position_scale")}
    return read_llama_like(
        fields, architecture, attention_scale=scale, norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        ropes=(make_rope(fields, given, head_dim_of(fields)),), activation="gegelu",
        embedding_scale=fields.number("mup_embedding_multiplier", 1.0) or 1.0,
        logits_scale=1 / fields.number("mup_width_multiplier", 1.0),
        extra=Phi3Small(
            block_size=fields.positive("blocksparse_block_size"),
            local_blocks=fields.positive("blocksparse_num_local_blocks"),
            stride=fields.positive("blocksparse_vert_stride"),
            same_for_all_heads=fields.flag("blocksparse_homo_head_pattern"),
            dense_every=int(fields.number("dense_attention_every_n_layers", 0)),
            gate_limit=fields.number("gegelu_limit", math.inf),
            unused_tokens=tuple(fields.get("dummy_token_indices", ())),
        ),
        **_LAYER_NORM_AND_BIASES,
    )  # fmt: skip
