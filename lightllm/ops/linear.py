"""Linear layers: which form of a weight a device computes with. A form is called as it is, see `PackedLinear`."""

from __future__ import annotations

import torch

from lightllm.ops.packed_linear import PackedLinear, PlainLinear
from lightllm.ops.torch import linear as torch_impl
from lightllm.ops.weight_rows import WeightRows, as_rows


def activation_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which dtype a model with weights of `dtype` computes on `device`.

    bfloat16 and float16 are computed in float32 on a CPU without bfloat16 instructions.
    """
    return torch_impl.activation_dtype(device, dtype)


def pack_linear(weight: torch.Tensor | WeightRows, bias: torch.Tensor | None) -> PackedLinear:
    """The fastest form of a dense weight for its device. The caller drops `weight` afterwards.

    weight: [out, in] in the model's dtype; bias: [out] or None. On a CPU a large weight is packed in pieces, which are
    fetched one after the other. A format whose weights are not dense gets a function of its own here.
    """
    rows = as_rows(weight)
    if rows.device.type == "cpu":
        return torch_impl.pack_linear(rows, bias)
    return PlainLinear(rows.on_device(), bias)
