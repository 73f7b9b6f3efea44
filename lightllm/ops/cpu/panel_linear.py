"""A linear layer with a kernel of our own: see `kernels/panel_linear.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import panel_linear as at
from lightllm.ops.cpu.calls.panel_linear import WIDTH
from lightllm.ops.cpu.library import Kernel, load_kernels
from lightllm.ops.cpu.panel_calls import caller, padded_bias, run, shares, with_stride
from lightllm.ops.huge_pages import in_huge_pages
from lightllm.ops.weight_rows import WeightRows

_PIECE_BYTES = 16 << 20
"""Fetched at once."""
_told = caller(at.LENGTH)


class PanelLinear:
    """bfloat16 weights, activations and results; sums in float32, in an order that no other row has a part in."""

    def __init__(self, kernel: Kernel, weight: WeightRows, bias: torch.Tensor | None) -> None:
        """weight: [out, in], in even."""
        outputs, inputs = weight.shape
        self._kernel, self._outputs, self._inputs, self._pairs = kernel, outputs, inputs, inputs // 2
        self._count = -(-outputs // WIDTH)
        memory = in_huge_pages(4 * self._count * self._pairs * WIDTH, torch.int32)
        self.panels = memory.view(self._count, self._pairs, WIDTH)
        self.bias = padded_bias(bias, self._count, WIDTH)
        self.nbytes = self.panels.nbytes
        rows = max(_PIECE_BYTES // (2 * inputs * WIDTH), 1) * WIDTH
        weight.pack(rows, torch.bfloat16, self._place)

    def _place(self, piece: torch.Tensor, first: int) -> None:
        """piece: rows of the weight from a multiple of WIDTH on."""
        whole, rest = divmod(len(piece), WIDTH)
        pairs, panel = piece.view(torch.int32), first // WIDTH
        if whole:
            own = pairs[: whole * WIDTH].view(whole, WIDTH, self._pairs)
            self.panels[panel : panel + whole].copy_(own.transpose(1, 2))
        if rest:
            last = self.panels[panel + whole]
            last.zero_()
            last[:, :rest] = pairs[whole * WIDTH :].T

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.bfloat16 or x.shape[1] != self._inputs:
            raise ValueError(f"inputs [T, {self._inputs}] in bfloat16, not {list(x.shape)} in {x.dtype}")
        x, stride = with_stride(x)
        rows = len(x)
        out = x.new_empty(rows, self._outputs)
        alone, threads, parts = shares(rows, rows * self._inputs * self._outputs, self._count)
        numbers = (
            rows, parts, x.data_ptr(), 2 * stride, out.data_ptr(), self.panels.data_ptr(), self._pairs, self._outputs,
            0 if self.bias is None else self.bias.data_ptr(), threads,
        )  # fmt: skip
        run(self._kernel, _told(numbers), alone)
        return out


def panel_linear(weight: WeightRows, bias: torch.Tensor | None) -> PanelLinear | None:
    """None where there is no kernel for it. weight: [out, in] of bfloat16 on the CPU; bias: [out] or None."""
    kernel = load_kernels().get("panel_linear_bfloat16")
    if kernel is None or weight.dtype != torch.bfloat16 or weight.shape[1] % 2 or 0 in weight.shape:
        return None
    return PanelLinear(kernel, weight, bias)
