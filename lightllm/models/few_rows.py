"""A layer of Llama's kind for few rows, as a GPU computes it fastest: in six launches instead of nine.

norm, QKV | rotation, KV memory | attention | O, residual | norm, gate and up, SwiGLU | down, residual
"""

from __future__ import annotations

import dataclasses

import torch

from lightllm.layers.norm import RMSNorm
from lightllm.models.attention import Attention
from lightllm.models.mlp import MLP
from lightllm.ops.batch import Batch
from lightllm.ops.gated_activation import silu_and_mul
from lightllm.ops.linear import PlainLinear
from lightllm.ops.skinny_linear import linear_add_, norm_linear, norm_swiglu


@dataclasses.dataclass(frozen=True)
class FewRows:
    attention: Attention
    input_norm: RMSNorm
    qkv: PlainLinear
    o: PlainLinear
    mlp_norm: RMSNorm
    gate_up: PlainLinear
    down: PlainLinear

    @classmethod
    def of(cls, input_norm: object, attention: object, mlp_norm: object, mlp: object) -> FewRows | None:
        """Of a layer's parts; None for others than these, weights in another form, or one rank's part of several."""
        if type(attention) is not Attention or type(mlp) is not MLP or mlp.activation is not silu_and_mul:
            return None
        if type(input_norm) is not RMSNorm or type(mlp_norm) is not RMSNorm:
            return None
        if any(row.group.world_size > 1 for row in (attention.o_proj, mlp.down_proj)):
            return None
        qkv, o, gate_up, down = attention.qkv_proj, attention.o_proj.packed, mlp.up_proj, mlp.down_proj.packed
        if not isinstance(qkv, PlainLinear) or not isinstance(o, PlainLinear):
            return None
        if not isinstance(gate_up, PlainLinear) or not isinstance(down, PlainLinear):
            return None
        return cls(attention, input_norm, qkv, o, mlp_norm, gate_up, down)

    def forward(self, residual: torch.Tensor, batch: Batch) -> None:
        """residual: [T, hidden], with everything that layers before have to add; it is added to in place."""
        qkv = norm_linear(residual, self.input_norm.weight, self.input_norm.eps, self.qkv)
        linear_add_(self.attention.attended(qkv, batch), self.o, residual)
        inner = norm_swiglu(residual, self.mlp_norm.weight, self.mlp_norm.eps, self.gate_up)
        linear_add_(inner, self.down, residual)
