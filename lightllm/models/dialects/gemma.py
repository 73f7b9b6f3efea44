"""Gemma 2 and 3: local and global layers, soft caps, a scaled embedding."""

from __future__ import annotations

import math
from collections.abc import Container

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
