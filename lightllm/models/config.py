"""A model's shape, normalised once from its config.json: what the code that all architectures share reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.models.config_fields import Fields, head_dim_of
from lightllm.models.moe_config import MlaConfig, MoeConfig
from lightllm.models.rope_config import RopeConfig, read_rope
from lightllm.quantization.formats import read_quantization

_DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16", "half": "float16",
    "fp32": "float32", "float32": "float32", "float": "float32",
}  # fmt: skip

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}  # fmt: skip
"""Spelling in a config.json -> the name of the operation."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Heads and MLP widths are this rank's after `for_rank`; everything else is the whole model's.

    A field is here only if shared code reads it; what one architecture alone knows is in its own class, in `extra`.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    attention_scale: float
    """What the products of queries and keys are multiplied with."""
    norm: str = "rms_norm"
    """"rms_norm" (rounded to the activation dtype before and after the weight is applied), "rms_norm_rounded_once" (after
    it), "rms_norm_plus_one" (the weight is what is added to 1; rounded once) or "layer_norm"."""
    norm_bias: bool = False
    activation: str = "silu"
    """A value of `ACTIVATIONS`, or the name of what the architecture computes itself."""
    ropes: tuple[RopeConfig, ...] = ()
    """The kinds of rotary embedding that layers choose from; none: positions come in otherwise."""
    windows: tuple[int, ...] = ()
    """Tokens that each layer's queries see, 0 for all; empty: all see all."""
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """What is added to the residual stream is multiplied with this."""
    logits_scale: float = 1.0
    logits_softcap: float = 0.0
    """logits = softcap * tanh(logits / softcap); 0: none."""
    attention_softcap: float = 0.0
    dtype: str | None = None
    """"bfloat16", "float16" or "float32"; None where config.json does not say."""
    quantization: Mapping[str, Any] | None = None
    """Format of the weights, see `quantization/formats.py`; None: dense."""
    moe: MoeConfig | None = None
    """Experts in place of some or all MLPs."""
    mla: MlaConfig | None = None
    """Latent attention; `num_kv_heads` is 1."""
    sees: bool = False
    """The checkpoint holds a vision encoder beside the language model, whose shape this is."""
    bidirectional_images: bool = False
    """Tokens of an image see each other in both directions."""
    extra: Any = None
    overruled: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """A line for each thing that config.json says and that has no effect, because it says something else as well."""

    @property
    def latent_dim(self) -> int:
        """Elements of KV memory's one vector a token; 0: it holds keys and values of heads."""
        return self.mla.latent + self.mla.rope if self.mla else 0

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

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
            moe=self.moe.for_rank(world_size) if self.moe else None,
        )


def read_llama_like(fields: Fields, architecture: str, **differences: Any) -> ModelConfig:
    """The shape in the spelling of Llama's config.json, which most architectures share.

    differences: fields of `ModelConfig` that the architecture has otherwise. Raises `InvalidModel` that names the field.
    """
    quantization = read_quantization(fields.get("quantization_config"))
    hidden_size, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    kv_heads = differences.get("num_kv_heads") or fields.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InvalidModel(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}."
        )
    head_dim = head_dim_of(fields)
    attention_bias = fields.flag("attention_bias")
    shape: dict[str, Any] = {
        "architecture": architecture,
        "num_layers": fields.positive("num_hidden_layers"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.positive("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": fields.positive("vocab_size"),
        "max_position_embeddings": fields.positive("max_position_embeddings", 2048),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "attention_scale": head_dim**-0.5,
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "qkv_bias": attention_bias,
        "o_bias": attention_bias,
        "mlp_bias": fields.flag("mlp_bias"),
        "dtype": _dtype(fields),
        "quantization": quantization,
    }
    if "activation" not in differences:
        differences["activation"] = _activation(fields)
    if "ropes" not in differences:
        differences["ropes"] = (read_rope(fields, head_dim),)
    if "windows" not in differences and fields.stated("sliding_window") is not None:
        fields.overrule(f"sliding_window has no effect on {architecture}")
    return ModelConfig(**{**shape, **differences})


def _activation(fields: Fields) -> str:
    name = fields.get("hidden_act", fields.get("hidden_activation", "silu"))
    if name not in ACTIVATIONS:
        raise InvalidModel(
            f"config.json: activation {name!r} is not supported; {', '.join(ACTIVATIONS)} are."
        )
    return ACTIVATIONS[name]


def read_windows(fields: Fields, sliding: Container[int]) -> tuple[int, ...]:
    """`sliding_window` of every layer: of those that `layer_types` calls so, else of those in `sliding`."""
    layers = fields.positive("num_hidden_layers")
    types = fields.get("layer_types")
    if types is None:
        types = ["sliding_attention" if i in sliding else "full_attention" for i in range(layers)]
    known = {"sliding_attention", "full_attention"}
    if not isinstance(types, list) or len(types) != layers or not set(map(str, types)) <= known:
        raise InvalidModel(f"config.json: layer_types must hold {layers} of {', '.join(sorted(known))}.")
    if "sliding_attention" not in types:
        return ()
    if fields.get("sliding_window") is None:
        raise InvalidModel("config.json: layers of sliding_attention (layer_types) need a sliding_window.")
    window = fields.positive("sliding_window")
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def read_same_window(fields: Fields) -> tuple[int, ...]:
    """`sliding_window` in all layers alike, or in none, of architectures whose layers do not differ."""
    layers = fields.positive("num_hidden_layers")
    window = 0 if fields.get("sliding_window") is None else fields.positive("sliding_window")
    same = ["sliding_attention" if window else "full_attention"] * layers
    if fields.get("layer_types", same) != same:
        raise InvalidModel(
            f"config.json: layer_types contradicts sliding_window {window or None}, which this architecture has in all layers."
        )
    return (window,) * layers if window else ()


def dtype_name(name: str) -> str:
    """ "bfloat16", "float16" or "float32" for any spelling; raises `InvalidModel`."""
    if name not in _DTYPES:
        raise InvalidModel(f"dtype {name!r} is not supported.", "Use bf16, fp16 or fp32.")
    return _DTYPES[name]


def _dtype(fields: Fields) -> str | None:
    name = fields.one_of("dtype", "torch_dtype")
    return None if name in (None, "auto") else dtype_name(str(name).removeprefix("torch."))
