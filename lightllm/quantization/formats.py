"""Which format a checkpoint's weights have. Loads no torch: the launch command refuses here what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightllm.errors import InvalidModel

if TYPE_CHECKING:
    from lightllm.quantization.weight_format import WeightFormat

FORMATS: dict[str, Callable[[Mapping[str, Any]], WeightFormat]] = {}
"""`quant_method` of a config.json's `quantization_config` -> from that to the format. One without it is dense."""


def read_quantization(field: Any) -> Mapping[str, Any] | None:
    """`quantization_config` of a config.json; None: its weights are dense. Raises `InvalidModel` for a format not in `FORMATS`."""
    if not field:
        return None
    method = field.get("quant_method", "unknown") if isinstance(field, dict) else field
    if isinstance(field, dict) and isinstance(method, str) and method in FORMATS:
        return field
    raise InvalidModel(
        f"Checkpoints quantized with {method!r} are not supported yet.",
        "Use a bfloat16 copy of it, without quantization_config in its config.json.",
    )


def make_format(quantization: Mapping[str, Any] | None) -> WeightFormat:
    """quantization: what `read_quantization` gave."""
    from lightllm.quantization.dense import Dense

    return Dense() if quantization is None else FORMATS[quantization["quant_method"]](quantization)
