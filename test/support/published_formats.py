"""From the tensors and the config of transformers' model to those of the published checkpoints of an architecture.

Where transformers has only a sibling that computes the same, its weights are repacked and renamed, as the published
conversion scripts do in the other direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

PLAIN = (
    "dtype", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "vocab_size", "bos_token_id", "eos_token_id",
)  # fmt: skip


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    result = {}
    for name, tensor in tensors.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def fuse(tensors: Tensors, parts: tuple[str, ...], fused: str, join: Callable[..., torch.Tensor]) -> Tensors:
    """Every set of tensors that differ in `parts` only becomes one, named with `fused`."""
    result = dict(tensors)
    for name in tensors:
        if f".{parts[0]}." in name:
            whole = join(*[result.pop(name.replace(f".{parts[0]}.", f".{part}.")) for part in parts])
            result[name.replace(f".{parts[0]}.", f".{fused}.")] = whole
    return result


def stacked(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors)


def grouped(head_dim: int) -> Callable[..., torch.Tensor]:
    def join(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        kv_heads = k.shape[0] // head_dim
        parts = [x.reshape(kv_heads, -1, head_dim, *x.shape[1:]) for x in (q, k, v)]
        return torch.cat(parts, 1).flatten(0, 2)

    return join


def experts_apart(
    tensors: Tensors, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Tensors:
    """transformers stacks all experts, as no published checkpoint does."""
    result = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind not in ("gate_up_proj", "down_proj") or not prefix.endswith("experts"):
            result[name] = tensor
            continue
        for number, matrix in enumerate(tensor):
            parts = matrix.chunk(2) if kind == "gate_up_proj" else [matrix]
            for part, own in zip(parts, names[:2] if kind == "gate_up_proj" else names[2:], strict=True):
                result[f"{prefix}.{number}.{own}.weight"] = part
    return result


def to_mixtral(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    tensors = experts_apart(tensors, ("w1", "w3", "w2"))
    return renamed(tensors, (".mlp.", ".block_sparse_moe.")), raw


def to_experts(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    return experts_apart(tensors), raw


def to_deepseek_v3(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    """The published files end with a layer that predicts one more token."""
    tensors = experts_apart(tensors)
    layer = raw["num_hidden_layers"]
    tensors[f"model.layers.{layer}.eh_proj.weight"] = torch.ones(4, 8)
    return tensors, {**raw, "num_nextn_predict_layers": 1}


def to_internlm(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    for layer in range(raw["num_hidden_layers"]):  # the published files carry it along
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    kept = {name: raw[name] for name in (*PLAIN, "rms_norm_eps", "hidden_act", "tie_word_embeddings")}
    return tensors, {
        **kept,
        "model_type": "internlm",
        "bias": True,
        "rotary": {"base": 10000, "type": "dynamic"},
    }


def to_internlm2(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    tensors = fuse(tensors, ("q_proj", "k_proj", "v_proj"), "wqkv", grouped(raw["head_dim"]))
    tensors = renamed(
        tensors, ("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("self_attn", "attention"),
        ("o_proj", "wo"), ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"), ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    )  # fmt: skip
    kept = {name: raw[name] for name in (*PLAIN, "num_key_value_heads", "rms_norm_eps", "hidden_act")}
    scaling = {"type": "dynamic", "factor": 2.0}
    return tensors, {
        **kept,
        "model_type": "internlm2",
        "bias": False,
        "rope_theta": 10000,
        "rope_scaling": scaling,
    }


def to_minicpm(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    kept = {name: raw[name] for name in (*PLAIN, "num_key_value_heads", "rms_norm_eps", "hidden_act")}
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    return tensors, {**kept, **scales, "model_type": "minicpm", "rope_scaling": None}


def to_chatglm(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    tensors = fuse(tensors, ("q_proj", "k_proj", "v_proj"), "query_key_value", stacked)
    tensors = renamed(
        tensors, ("model.embed_tokens", "transformer.embedding.word_embeddings"),
        ("lm_head", "transformer.output_layer"), ("model.layers", "transformer.encoder.layers"),
        ("model.norm", "transformer.encoder.final_layernorm"), ("self_attn", "self_attention"), ("o_proj", "dense"),
        ("gate_up_proj", "dense_h_to_4h"), ("down_proj", "dense_4h_to_h"),
    )  # fmt: skip
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(4)
    return tensors, {
        "model_type": "chatglm", "torch_dtype": raw["dtype"], "add_bias_linear": False, "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False, "ffn_hidden_size": raw["intermediate_size"],
        "hidden_size": raw["hidden_size"], "kv_channels": raw["head_dim"], "layernorm_epsilon": raw["rms_norm_eps"],
        "multi_query_attention": True, "multi_query_group_num": raw["num_key_value_heads"],
        "num_attention_heads": raw["num_attention_heads"], "num_layers": raw["num_hidden_layers"],
        "original_rope": True, "padded_vocab_size": raw["vocab_size"], "post_layer_norm": True, "rmsnorm": True,
        "seq_length": raw["max_position_embeddings"], "tie_word_embeddings": False, "eos_token_id": 2,
    }  # fmt: skip


def to_qwen(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    tensors = fuse(tensors, ("q_proj", "k_proj", "v_proj"), "c_attn", stacked)
    tensors = renamed(
        tensors, ("model.embed_tokens", "transformer.wte"), ("model.layers", "transformer.h"),
        ("model.norm", "transformer.ln_f"), ("self_attn", "attn"), ("o_proj", "c_proj"), ("up_proj", "w1"),
        ("gate_proj", "w2"), ("down_proj", "c_proj"), ("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2"),
    )  # fmt: skip
    kept = {name: raw[name] for name in PLAIN}
    return tensors, {
        **kept, "model_type": "qwen", "intermediate_size": 2 * raw["intermediate_size"], "kv_channels": raw["head_dim"],
        "layer_norm_epsilon": raw["rms_norm_eps"], "no_bias": True, "rotary_emb_base": 10000, "rotary_pct": 1.0,
        "seq_length": raw["max_position_embeddings"], "tie_word_embeddings": False, "use_dynamic_ntk": True,
        "use_logn_attn": True, "scale_attn_weights": True,
    }  # fmt: skip


def without_prefix(tensors: Tensors, raw: Config) -> tuple[Tensors, Config]:
    """As BLOOM is published: the base model's names, and its sizes under their old names."""
    raw = {**raw, "n_embed": raw.pop("hidden_size"), "num_attention_heads": raw.pop("n_head")}
    return renamed(tensors, ("transformer.", "")), raw
