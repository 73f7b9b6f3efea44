"""What a format of weights must be able to do, and which one a checkpoint has. Loads no torch: the launch command refuses here
what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lightllm.errors import InvalidModel

if TYPE_CHECKING:
    import torch

    from lightllm.ops.linear import PackedLinear
    from lightllm.ops.packed_experts import PackedExperts, StackedExperts
    from lightllm.quantization.linear_spec import LinearSpec
    from lightllm.weights.reader import ModuleTensors


class WeightFormat(Protocol):
    """Reads a layer's tensors, each once, and makes what computes with them. Thread-safe: layers are made in parallel."""

    def linear(self, tensors: ModuleTensors, spec: LinearSpec) -> PackedLinear:
        """Ready to compute on `tensors.device`."""

    def dense(
        self, tensors: ModuleTensors, spec: LinearSpec, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The weight [out of this rank, in of this rank] itself, for what is more than a linear layer: embeddings, and the keys'
        and values' part of latent attention. dtype: widened to it after rounding to the model's, None: the model's."""

    def experts(
        self,
        tensors: ModuleTensors,
        count: int,
        gate_up: Callable[[int], LinearSpec],
        down: Callable[[int], LinearSpec],
    ) -> PackedExperts | StackedExperts:
        """A mixture of gated MLPs; gate_up, down: of expert number i, the gate's outputs before those of up."""


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
