"""Linear layers on weights that are packed once, at load, for the device."""

from __future__ import annotations

import torch

from lightllm.ops.torch import linear as torch_impl
from lightllm.ops.torch.linear import PackedLinear
from lightllm.ops.weight_rows import WeightRows, as_rows

__all__ = ["PackedLinear", "activation_dtype", "linear", "pack_linear"]


def activation_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which dtype a model with weights of `dtype` computes on `device`.

    bfloat16 and float16 are computed in float32 on a CPU without bfloat16 instructions.
    """
    return torch_impl.activation_dtype(device, dtype)


def pack_linear(weight: torch.Tensor | WeightRows, bias: torch.Tensor | None) -> PackedLinear:
    """The fastest form of a weight for its device. The caller drops `weight` afterwards.

    weight: [out, in] in the model's dtype; bias: [out] or None. A large weight is packed in pieces, which are fetched one
    after the other.
    """
    return torch_impl.pack_linear(as_rows(weight), bias)


def linear(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """x Wᵀ + bias. x: [T, in] in `activation_dtype`. Returns [T, out] of the same dtype."""
    return packed(x)
