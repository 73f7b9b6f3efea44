"""A linear layer of weights in 4 or 8 bits with a kernel of our own: see `kernels/few_bits_linear.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import few_bits_linear as at
from lightllm.ops.cpu.calls.few_bits_linear import WIDTH
from lightllm.ops.cpu.code_panels import expanded, grid_in_panels, memory_for
from lightllm.ops.cpu.library import Kernel, load_kernels
from lightllm.ops.cpu.panel_calls import caller, padded_bias, run, shares, with_stride
from lightllm.ops.quantized_weight import MIDDLE, NIBBLES, QuantizedWeight

_BLOCK = 128
"""Inputs that share a fixed point, at most."""
_LANES = 16
_PIECE = 1 << 20
"""Weights that are put in panels at a time."""
_INPUTS_AT_ONCE = 1 << 15
"""Up to so many inputs are put in fixed point by one thread."""
_TABLE_ZERO, _TABLE_SCALE = 12, 0.5
"""See `TABLE` of `kernels/byte_products.py`."""
_told = caller(at.LENGTH)


class FewBitsLinear:
    """bfloat16 activations and results; sums in integers and float32, in an order that no other row has a part in."""

    def __init__(
        self,
        kernel: Kernel,
        prepare: Kernel,
        weight: QuantizedWeight,
        block: int,
        bias: torch.Tensor | None,
        in_place: bool,
    ) -> None:
        """block: inputs that share a fixed point, a part of a group."""
        self._kernel, self._prepare, self._block, self._order = kernel, prepare, block, weight.inputs
        self._outputs, self._inputs = weight.shape
        self._panels, self._blocks = -(-self._outputs // WIDTH), -(-self._inputs // block)
        self.codes = _panels_of(weight, self._panels, self._blocks * block, in_place)
        scales = expanded(weight, weight.scales.float())
        self.scales = grid_in_panels(
            scales * (_TABLE_SCALE if weight.element == "e2m1" else 1), self._panels, WIDTH
        )
        self._groups = scales.shape[1]
        self._blocks_of_group = self._blocks if self._groups == 1 else weight.group // block
        self.zeros = _zeros(weight, self._panels)
        self._zero_stride = 0 if weight.zeros is None else WIDTH
        self.bias = padded_bias(bias, self._panels, WIDTH)
        self.nbytes = self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.bfloat16 or x.shape[1] != self._inputs:
            raise ValueError(f"inputs [T, {self._inputs}] in bfloat16, not {list(x.shape)} in {x.dtype}")
        if self._order is not None:
            x = x.index_select(1, self._order)
        x, stride = with_stride(x)
        rows, blocks = len(x), self._blocks
        planes = torch.empty(2, rows, blocks * self._block, dtype=torch.int8)
        grids = torch.empty(2, rows, blocks, dtype=torch.int32)
        out = x.new_empty(rows, self._outputs)
        alone, threads, parts = shares(rows, rows * self._inputs * self._outputs, self._panels)
        high, factors = planes.data_ptr(), grids.data_ptr()
        numbers = (
            rows, parts, x.data_ptr(), 2 * stride, self._inputs, high, high + planes.nbytes // 2, factors, factors + grids.nbytes // 2,
            out.data_ptr(), self.codes.data_ptr(), blocks, self._block, self._outputs, self.scales.data_ptr(), self.zeros.data_ptr(),
            self._zero_stride, self._groups, self._blocks_of_group, 0 if self.bias is None else self.bias.data_ptr(), threads,
        )  # fmt: skip
        run(self._prepare, _told(numbers), rows * self._inputs <= _INPUTS_AT_ONCE)
        run(self._kernel, _told(numbers), alone)
        return out


def few_bits_linear(
    weight: QuantizedWeight, bias: torch.Tensor | None, in_place: bool = False
) -> FewBitsLinear | None:
    """None where there is no kernel for it. weight: on the CPU; bias: [out] or None; in_place: the codes may be written over,
    where there is memory for whole panels (see `memory_of_panels`)."""
    kernels = load_kernels()
    kernel, prepare = kernels.get(f"few_bits_linear_{weight.element}"), kernels.get("few_bits_inputs")
    if kernel is None or prepare is None or weight.group_of is not None or 0 in weight.shape:
        return None
    group = _BLOCK if weight.scales.shape[1] == 1 else weight.group
    block = _BLOCK if group % _BLOCK == 0 else group
    return (
        None if block > _BLOCK or block % 8 else FewBitsLinear(kernel, prepare, weight, block, bias, in_place)
    )


def _panels_of(weight: QuantizedWeight, panels: int, inputs: int, in_place: bool) -> torch.Tensor:
    """Codes as the kernel reads them; outputs and inputs that there are not are 0, and their inputs or scales too."""
    outputs, given = weight.shape
    nibbles = weight.element in NIBBLES
    four = inputs // 8 if nibbles else inputs // 4
    memory = memory_for(weight, panels * four * WIDTH * 4, WIDTH, in_place)
    codes = memory.view(panels, four, WIDTH // _LANES, _LANES, 4)
    step = max(1, _PIECE // (inputs * WIDTH))
    for panel in range(0, panels, step):
        own = weight.codes[panel * WIDTH : (panel + step) * WIDTH]
        count = -(-len(own) // WIDTH)
        piece = torch.zeros(count * WIDTH, inputs, dtype=torch.uint8)
        if nibbles:
            piece[: len(own), 0:given:2], piece[: len(own), 1:given:2] = own & 15, own >> 4
            pairs = piece.view(count, WIDTH // _LANES, _LANES, four, 2, 4)
            piece = pairs[..., 0, :] | pairs[..., 1, :] << 4
        else:
            piece[: len(own), :given] = own.view(torch.uint8) ^ 128
            piece = piece.view(count, WIDTH // _LANES, _LANES, four, 4)
        codes[panel : panel + count] = piece.permute(0, 3, 1, 2, 4)
    return codes


def _zeros(weight: QuantizedWeight, panels: int) -> torch.Tensor:
    """Of the unsigned codes in panels."""
    if weight.element == "e2m1":
        return torch.full((WIDTH,), _TABLE_ZERO, dtype=torch.uint8)
    if weight.zeros is None:
        return torch.full((WIDTH,), MIDDLE if weight.element == "int4" else 128, dtype=torch.uint8)
    zeros = weight.zeros if weight.element == "int4" else weight.zeros.view(torch.uint8) ^ 128
    return grid_in_panels(expanded(weight, zeros), panels, WIDTH)
