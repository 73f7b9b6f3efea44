"""What all vision encoders are built of: patches, attention inside segments, and layers around them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from lightllm.errors import InvalidModel
from lightllm.layers.linear import RowLinear
from lightllm.layers.norm import LayerNorm, Norm, WholeQKNorm
from lightllm.models.builder import Builder
from lightllm.models.config import ACTIVATIONS, ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.decoder_layers import FeedForward
from lightllm.ops.linear import PackedLinear, pack_linear
from lightllm.ops.rotary import rotary_embedding
from lightllm.ops.segment_attention import segment_attention

_Layer = TypeVar("_Layer")

_ACTIVATIONS = {**ACTIVATIONS, "quick_gelu": "quick_gelu"}


@dataclasses.dataclass(frozen=True)
class Segments:
    """Which tokens of the sequence attend to each other, and where in their image they stand."""

    lengths: Sequence[int]
    """Tokens of each segment, one after the other."""
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    """Cosines and sines, float32 [T, 1, head_dim]."""


class VisionAttention:
    """o(attention(rotate(norm(q)), rotate(norm(k)), v)) with [q, k, v] = qkv(x)"""

    def __init__(
        self,
        config: ModelConfig,
        qkv_proj: PackedLinear,
        o_proj: RowLinear,
        qk_norm: WholeQKNorm | None = None,
    ) -> None:
        self.num_heads, self.head_dim, self.scale = config.num_heads, config.head_dim, config.attention_scale
        self.qkv_proj, self.o_proj, self.qk_norm = qkv_proj, o_proj, qk_norm

    def forward(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """x: [T, hidden]. Returns a new tensor of the same shape, added up over all ranks."""
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)
        qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=1)
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if segments.rotary is not None:
            qk = rotary_embedding(qk.float(), *segments.rotary).to(v.dtype)
        q, k = qk.chunk(2, dim=1)
        return self.o_proj(segment_attention(q, k, v, segments.lengths, self.scale).flatten(1))


class EncoderLayer:
    """h += attention(norm(h)); h += mlp(norm(h))"""

    def __init__(self, norm1: Norm, attention: VisionAttention, norm2: Norm, mlp: FeedForward) -> None:
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp

    def forward(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """x: [T, hidden]. Returns a tensor of the same shape."""
        x = x + self.attention.forward(self.norm1(x), segments)
        return x + self.mlp.forward(self.norm2(x))


def encoder_layers(
    build: Builder, name: str, make: Callable[[Builder], _Layer], run: int, total: int | None = None
) -> list[_Layer]:
    """The first `run` of the layers `<name>.<number>`; total: layers in the checkpoint, None: no more than these."""
    for left in range(run, total or run):
        build.ignore_under(f"{name}.{left}.")
    return build.in_parallel([functools.partial(make, build.at(f"{name}.{i}")) for i in range(run)])


def patch_linear(
    build: Builder, name: str, hidden_size: int, kernel: Sequence[int], bias: bool
) -> PackedLinear:
    """A convolution [hidden, *kernel] whose stride is its kernel: a linear layer over patches of the shape `kernel`."""
    (weight,) = build.tensors.read(f"{name}.weight", (hidden_size, *kernel))
    offset = build.vector(f"{name}.bias", (hidden_size,)) if bias else None
    return build.keep(pack_linear(build.tensors.rows([weight.flatten(1)]), offset))


def patches_of(tiles: torch.Tensor, size: int) -> torch.Tensor:
    """From tiles [N, 3, height, width] to patches [N, rows * columns, 3 * size * size], rows first."""
    count, channels, height, width = tiles.shape
    split = tiles.view(count, channels, height // size, size, width // size, size)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size * size)


def layer_norm(build: Builder, name: str, size: int, eps: float) -> LayerNorm:
    """Of another size or epsilon than those of the encoder's layers."""
    weight, bias = (build.vector(f"{name}.{part}", (size,)) for part in ("weight", "bias"))
    return build.keep(LayerNorm(weight, bias, eps))


def read_encoder(fields: Fields, **differences: Any) -> ModelConfig:
    """A Vision Transformer's shape (Dosovitskiy et al. 2021, arXiv 2010.11929): layer norms and biases everywhere.

    differences: fields of `ModelConfig` that the family has otherwise. Raises `InvalidModel` that names the field.
    """
    hidden_size, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    if hidden_size % heads:
        raise InvalidModel(
            f"config.json: the vision encoder's width {hidden_size} is no multiple of its {heads} heads."
        )
    activation = fields.get("hidden_act")
    if activation not in _ACTIVATIONS:
        raise InvalidModel(
            f"config.json: the vision encoder's activation {activation!r} is not supported; {', '.join(_ACTIVATIONS)} are."
        )
    shape = {
        "architecture": "",
        "num_layers": fields.positive("num_hidden_layers"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.positive("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden_size // heads,
        "vocab_size": 0,
        "max_position_embeddings": 0,
        "norm": "layer_norm",
        "norm_bias": True,
        "norm_eps": fields.number("layer_norm_eps", 1e-6),
        "attention_scale": (hidden_size // heads) ** -0.5,
        "activation": _ACTIVATIONS[activation],
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
    }
    return ModelConfig(**{**shape, **differences})


def part_of(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside a config.json."""
    part = raw.get(name)
    if not isinstance(part, dict):
        raise InvalidModel(f"config.json lacks {name}.")
    return part


def layers_until(layer: Any, total: int) -> int:
    """How many layers are run for the output of `layer` of `total`: -1 the last one's, -2 that of the one before it; 0 is the input of
    the first, as in `hidden_states` of transformers."""
    run = None if not isinstance(layer, int) else layer if layer >= 0 else total + 1 + layer
    if run is None or not 0 <= run <= total:
        raise InvalidModel(
            f"config.json: the vision encoder's layer {layer!r} must be one number of {-total - 1} to {total}."
        )
    return run


def side_of(fields: Fields, name: str) -> int:
    """A number of pixels; some files say it twice, as height and width, which must be the same."""
    value = fields.get(name)
    if isinstance(value, list) and len(set(value)) == 1:
        return Fields({name: value[0]}).positive(name)
    return fields.positive(name)
