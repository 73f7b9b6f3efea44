"""Makes the forms of linear layers and attention of another kind of processor run on this one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightllm.ops import linear as torch_linear

ARITHMETICS = ("float32", "bfloat16")
"""What bf16 weights are computed in: without bf16 instructions, and with them."""


class RoundedLinear:
    """What oneDNN computes with bf16 instructions: products and sums in float32, one rounding at the end."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight.clone(), bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == self.weight.dtype
        return F.linear(x, self.weight, self.bias)


def compute_bf16_weights_in(monkeypatch: pytest.MonkeyPatch, arithmetic: str) -> None:
    """What is packed from now on is computed in float32, as with AVX2 and AVX512, or in bfloat16, as with AVX512-BF16 and AMX.

    Activations, KV memory and the results of every operation are then bfloat16. A processor that has the instructions uses
    them; on another, torch's plain linear layer stands for oneDNN's.
    """
    has_instructions = torch_linear._has_bf16_instructions()
    monkeypatch.setattr(torch_linear, "_has_bf16_instructions", lambda: arithmetic == "bfloat16")
    if arithmetic == "bfloat16" and not has_instructions:
        packed = torch_linear.OneDnnLinear
        monkeypatch.setattr(
            torch_linear,
            "OneDnnLinear",
            lambda weight, bias: (RoundedLinear if weight.dtype == torch.bfloat16 else packed)(weight, bias),
        )
