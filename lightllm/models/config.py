"""A model's shape, normalised once from its config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lightllm.errors import InvalidModel

ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Supported kinds of rotary embedding and the fields that each needs."""

_DEFAULTS: dict[str, dict[str, Any]] = {"qwen3": {"num_key_value_heads": 32, "head_dim": 128}}
"""What transformers assumes where a config.json of that model_type is silent."""

_DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16", "half": "float16",
    "fp32": "float32", "float32": "float32", "float": "float32",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Heads and MLP width are this rank's after `for_rank`; everything else is the whole model's."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, float | str]
    """`rope_type` and its fields."""
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: str | None
    """"bfloat16", "float16" or "float32"; None where config.json does not say."""

    @property
    def scale(self) -> float:
        """What attention scores are multiplied with."""
        return self.head_dim**-0.5

    def for_rank(self, world_size: int) -> ModelConfig:
        """The part of one of `world_size` ranks; with fewer KV heads than ranks, ranks share a KV head."""
        if world_size == 1:
            return self
        for name in ("num_heads", "intermediate_size"):
            if getattr(self, name) % world_size:
                raise InvalidModel(f"{name} {getattr(self, name)} cannot be split over {world_size} ranks.",
                                   "Choose another --tp.")  # fmt: skip
        if self.num_kv_heads % world_size and world_size % self.num_kv_heads:
            raise InvalidModel(f"{self.num_kv_heads} KV heads cannot be split over {world_size} ranks.",
                               "Choose another --tp.")  # fmt: skip
        return dataclasses.replace(
            self,
            num_heads=self.num_heads // world_size,
            num_kv_heads=max(1, self.num_kv_heads // world_size),
            intermediate_size=self.intermediate_size // world_size,
        )


def normalise(raw: Mapping[str, Any], architecture: str) -> ModelConfig:
    """The shape from the content of a config.json; raises `InvalidModel` that names the field."""
    raw = {**_DEFAULTS.get(raw.get("model_type", ""), {}), **{k: v for k, v in raw.items() if v is not None}}
    _refuse_what_is_not_built(raw)
    hidden_size, heads = _positive(raw, "hidden_size"), _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise InvalidModel(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}."
        )
    head_dim = _positive(raw, "head_dim", hidden_size // heads)
    if head_dim % 2:
        raise InvalidModel(f"config.json: head_dim {head_dim} is odd; rotary embeddings pair its elements.")
    theta, scaling = _rope(raw)
    return ModelConfig(
        architecture=architecture,
        num_layers=_positive(raw, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_positive(raw, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_positive(raw, "vocab_size"),
        max_position_embeddings=_positive(raw, "max_position_embeddings", 2048),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        dtype=_dtype(raw),
    )


def dtype_name(name: str) -> str:
    """ "bfloat16", "float16" or "float32" for any spelling; raises `InvalidModel`."""
    if name not in _DTYPES:
        raise InvalidModel(f"dtype {name!r} is not supported.", "Use bf16, fp16 or fp32.")
    return _DTYPES[name]


def _dtype(raw: Mapping[str, Any]) -> str | None:
    name = raw.get("dtype") or raw.get("torch_dtype")
    return None if name in (None, "auto") else dtype_name(str(name).removeprefix("torch."))


def _rope(raw: Mapping[str, Any]) -> tuple[float, dict[str, float | str]]:
    """transformers 5 writes `rope_parameters` with the theta inside, older ones `rope_scaling` and `rope_theta`."""
    fields = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(fields.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise InvalidModel(f"rope type {kind!r} is not supported yet; supported are {', '.join(ROPE_TYPES)}.")
    missing = [name for name in ROPE_TYPES[kind] if name not in fields]
    if missing:
        raise InvalidModel(f"config.json: rope type {kind!r} needs {', '.join(missing)}.")
    if float(fields.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise InvalidModel("partial_rotary_factor other than 1 is not supported yet.")
    return theta, {"rope_type": kind, **{name: float(fields[name]) for name in ROPE_TYPES[kind]}}


def _refuse_what_is_not_built(raw: Mapping[str, Any]) -> None:
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise InvalidModel(f"Checkpoints quantized with {method!r} are not supported yet.")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise InvalidModel(f"hidden_act {activation!r} is not supported; this architecture uses silu.")
    if raw.get("use_sliding_window"):
        raise InvalidModel("Sliding window attention is not supported yet (use_sliding_window is true).")


def _positive(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name, default)
    if value is None:
        raise InvalidModel(f"config.json lacks {name}.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidModel(f"config.json: {name} must be a positive integer, got {value!r}.")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    value = raw.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidModel(f"config.json: {name} must be a number, got {value!r}.")
    return float(value)
