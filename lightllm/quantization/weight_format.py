"""What a format of weights must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from lightllm.ops.linear import PackedLinear
from lightllm.ops.packed_experts import PackedExperts, StackedExperts
from lightllm.quantization.linear_spec import LinearSpec
from lightllm.weights.module_tensors import ModuleTensors


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
