"""A linear layer of int8 weights and int8 activations (W8A8), each token with a scale of its own:

    x_q = round(x / s),  s = max|x| / 127          y = s * scale * (x_q Wᵀ) + bias

The products are added up exactly, so that no row depends on another. For GPUs, through cuBLAS.
"""

from __future__ import annotations

import torch

_LEAST_ROWS = 32
"""cuBLAS multiplies bytes of more than 16 rows only (`torch._int_mm`)."""
_MULTIPLE = 8
"""Of outputs and inputs."""


class Int8Activations:
    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        """codes: int8 [out, in]; scales: [out]; bias: [out] or None."""
        self._outputs, inputs = codes.shape
        more = (0, -inputs % _MULTIPLE, 0, -self._outputs % _MULTIPLE)
        self.codes = torch.nn.functional.pad(codes, more) if any(more) else codes
        self.scales, self.bias = scales.float(), bias
        self.nbytes = self.codes.nbytes + self.scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] of a floating dtype. Returns [T, out] of the same one."""
        rows, values = len(x), x.float()
        scales = values.abs().amax(1, keepdim=True).clamp_(min=1e-10) / 127
        padding = (0, self.codes.shape[1] - x.shape[1], 0, max(0, _LEAST_ROWS - rows))
        numbers = torch.nn.functional.pad((values / scales).round_().to(torch.int8), padding)
        sums = torch._int_mm(numbers, self.codes.T)[:rows, : self._outputs].float()
        out = sums.mul_(scales).mul_(self.scales)
        return (out if self.bias is None else out.add_(self.bias)).to(x.dtype)
