"""Gemma 2 and 3: local and global layers, soft caps, a scaled embedding."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.models.config import ModelConfig, read_llama_like, read_windows
from lightllm.models.config_fields import Fields
from lightllm.models.rope_config import RopeConfig, make_rope, read_rope


def gemma2(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(head_dim=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    local = range(0, fields.positive("num_hidden_layers"), 2)
    return _gemma(fields, architecture, local, (read_rope(fields, fields.positive("head_dim")),))


def gemma3(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(head_dim=256)
    if fields.flag("use_bidirectional_attention"):
        raise InvalidModel("config.json: use_bidirectional_attention makes it an encoder.")
    period = fields.positive("sliding_window_pattern", 6)
    local = [layer for layer in range(fields.positive("num_hidden_layers")) if (layer + 1) % period]
    fields = fields.with_defaults(rope_theta=1e6)
    whole, sliding = _both_ropes(fields)
    sliding = {"rope_theta": fields.number("rope_local_base_freq", 10000.0), **sliding}
    head_dim = fields.positive("head_dim")
    ropes = (make_rope(fields, whole, head_dim), make_rope(fields, sliding, head_dim))
    return _gemma(fields, architecture, local, ropes)


def _both_ropes(fields: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says of the global layers' rotary embedding, and of the local ones'."""
    given = fields.get("rope_parameters") or {}
    if not isinstance(given, dict) or not {"full_attention", "sliding_attention"} >= given.keys():
        raise InvalidModel("config.json: rope_parameters must hold full_attention and sliding_attention.")
    whole, sliding = given.get("full_attention") or {}, given.get("sliding_attention") or {}
    old = fields.get("rope_scaling") or {}
    if not all(isinstance(rope, dict) for rope in (whole, sliding, old)):
        raise InvalidModel("config.json: rope_parameters and rope_scaling must hold objects.")
    for name in sorted(old.keys() & whole.keys()):
        if old[name] != whole[name]:
            fields.overrule(
                f"{name} {old[name]!r} of rope_scaling is taken, {whole[name]!r} of rope_parameters is not"
            )
    return {**whole, **old}, sliding


def _gemma(
    fields: Fields, architecture: str, local: Container[int], ropes: tuple[RopeConfig, ...]
) -> ModelConfig:
    fields = fields.with_defaults(
        tie_word_embeddings=True,
        sliding_window=4096,
        hidden_activation="gelu_pytorch_tanh",
        num_key_value_heads=4,
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
