"""What a format of weights must be able to do, and which one a checkpoint has. Loads no torch: the launch command refuses here
what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lightllm.errors import InvalidModel
from lightllm.quantization import awq, compressed_tensors, fp8, gptq, mxfp4
from lightllm.quantization.layout import Layouts
from lightllm.quantization.quant_plan import QuantPlan

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


LAYOUTS: dict[str, Callable[[Mapping[str, Any]], Layouts]] = {
    "awq": awq.layouts, "compressed-tensors": compressed_tensors.layouts, "fbgemm_fp8": fp8.layouts, "fp8": fp8.layouts,
    "gptq": gptq.layouts, "mxfp4": mxfp4.layouts,
}  # fmt: skip
"""`quant_method` of a config.json's `quantization_config` -> from that to how modules are kept; raises `InvalidModel` for a
variant that is not read."""


def _by_layouts(method: str) -> Callable[[Mapping[str, Any]], WeightFormat]:
    def make(quantization: Mapping[str, Any]) -> WeightFormat:
        from lightllm.quantization.quantized import Quantized

        return Quantized(LAYOUTS[method](quantization))

    return make


FORMATS: dict[str, Callable[[Mapping[str, Any]], WeightFormat]] = {
    method: _by_layouts(method) for method in LAYOUTS
}
"""`quant_method` -> from `quantization_config` to the format. A checkpoint without one is dense."""


def read_quantization(field: Any) -> Mapping[str, Any] | None:
    """`quantization_config` of a config.json; None: its weights are dense. Raises `InvalidModel` for what is not read."""
    if not field:
        return None
    method = field.get("quant_method", "unknown") if isinstance(field, dict) else field
    if not isinstance(field, dict) or not isinstance(method, str) or method not in FORMATS:
        raise InvalidModel(
            f"Checkpoints quantized with {method!r} are not supported yet; with {', '.join(LAYOUTS)} they are.",
            "Use a bfloat16 copy of it, without quantization_config in its config.json.",
        )
    if method in LAYOUTS:
        LAYOUTS[method](field)
    return field


def make_format(quantization: Mapping[str, Any] | None, plan: QuantPlan | None = None) -> WeightFormat:
    """quantization: what `read_quantization` gave; plan: how a dense checkpoint is quantised while it is loaded, None: not."""
    from lightllm.quantization.dense import Dense

    if plan is not None:
        from lightllm.quantization.while_loading import QuantisedWhileLoading

        assert quantization is None, "a plan is for a dense checkpoint: see `check_dense`"
        return QuantisedWhileLoading(plan)
    return Dense() if quantization is None else FORMATS[quantization["quant_method"]](quantization)
