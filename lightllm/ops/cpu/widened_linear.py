"""A linear layer of weights in few bits that are widened and multiplied as numbers: see `kernels/widened_linear.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.cpu.calls import widened_linear as at
from lightllm.ops.cpu.code_panels import expanded, grid_in_panels, memory_for
from lightllm.ops.cpu.library import Kernel, load_kernels
from lightllm.ops.cpu.panel_calls import caller, padded_bias, run, shares, with_stride
from lightllm.ops.quantized_weight import MIDDLE, NIBBLES, QuantizedWeight

_PIECE = 1 << 20
"""Weights that are put in panels at a time."""
_INPUTS_AT_ONCE = 1 << 16
"""Up to so many inputs are summed up by one thread."""
_E4M3_SCALE = 256.0
"""E4M3 is read as float16, whose exponents count from 15 and not from 7."""
_NO_NUMBER = 0x7F
"""The code of E4M3 for none, without its sign."""
_STEP = {1: torch.int8, 2: torch.int16, 8: torch.int32}
"""What the codes of an output for so many inputs of a step lie in."""
_told = caller(at.LENGTH)


class WidenedLinear:
    """Activations and results in float32, or of E4M3 in bfloat16; sums in float32, in an order that no other row has a part in."""

    def __init__(
        self,
        kernel: Kernel,
        totals: Kernel,
        dtype: torch.dtype,
        weight: QuantizedWeight,
        block: int,
        bias: torch.Tensor | None,
        in_place: bool,
    ) -> None:
        """dtype: of activations; block: inputs that are summed up before they are scaled, a part of a group."""
        self._kernel, self._totals, self._dtype, self._block = kernel, totals, dtype, block
        self._order, self._element = weight.inputs, at.ELEMENTS.index(weight.element)
        self._step = at.INPUTS_OF_STEP[weight.element]
        self._outputs, self._inputs = weight.shape
        self._padded = -(-self._inputs // self._step) * self._step
        self._width, self._blocks = at.width(), -(-self._inputs // block)
        self._panels = -(-self._outputs // self._width)
        self.codes = _panels_of(weight, self._width, self._padded, dtype == torch.bfloat16, in_place)
        scales = expanded(weight, weight.scales.float())
        as_float16 = weight.element == "e4m3" and dtype == torch.float32
        self.scales = grid_in_panels(scales * (_E4M3_SCALE if as_float16 else 1), self._panels, self._width)
        self._groups = scales.shape[1]
        self._blocks_of_group = self._blocks if self._groups == 1 else weight.group // block
        self.zeros = _zeros(weight, self._panels, self._width)
        self.bias = padded_bias(bias, self._panels, self._width)
        self.nbytes = self.codes.nbytes + self.scales.nbytes
        self.nbytes += 0 if self.zeros is None else self.zeros.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._dtype or x.shape[1] != self._inputs:
            raise ValueError(f"inputs [T, {self._inputs}] in {self._dtype}, not {list(x.shape)} in {x.dtype}")
        if self._order is not None:
            x = x.index_select(1, self._order)
        if self._padded != self._inputs:
            x = F.pad(x, (0, self._padded - self._inputs))
        x, stride = with_stride(x)
        rows = len(x)
        zeros = self.zeros
        totals = None if zeros is None else torch.empty(rows, self._blocks)
        out = x.new_empty(rows, self._outputs)
        alone, threads, parts = shares(rows, rows * self._padded * self._outputs, self._panels)
        panel_bytes = self.codes.nbytes // self._panels
        numbers = (
            rows, parts, x.data_ptr(), stride * x.itemsize, self._padded, 0 if totals is None else totals.data_ptr(), out.data_ptr(),
            self.codes.data_ptr(), panel_bytes, panel_bytes * self._block // self._padded, self._element, self._blocks, self._block,
            self._step, self._outputs, self.scales.data_ptr(), 0 if zeros is None else zeros.data_ptr(),
            0 if zeros is None or zeros.dim() == 1 else self._width, self._groups, self._blocks_of_group,
            0 if self.bias is None else self.bias.data_ptr(), threads,
        )  # fmt: skip
        if totals is not None:
            run(self._totals, _told(numbers), rows * self._padded <= _INPUTS_AT_ONCE)
        run(self._kernel, _told(numbers), alone)
        return out


def widened_linear(
    weight: QuantizedWeight, bias: torch.Tensor | None, dtype: torch.dtype, in_place: bool = False
) -> WidenedLinear | None:
    """None where there is no kernel for it. weight: on the CPU; bias: [out] or None; dtype: of activations; in_place: the codes may be
    written over, where there is memory for whole panels (see `memory_of_panels`)."""
    kernels = load_kernels()
    kernel = kernels.get(f"widened_linear_{str(dtype).removeprefix('torch.')}")
    if kernel is None or weight.group_of is not None or 0 in weight.shape:
        return None
    if weight.element == "e4m3":
        if _has_no_numbers(weight.codes):
            return None
    elif dtype == torch.bfloat16:
        return None
    most = at.BLOCK_AT_MOST
    group = most if weight.scales.shape[1] == 1 else weight.group
    block = next((size for size in range(min(most, group), 0, -1) if group % size == 0 and size % 8 == 0), 0)
    if not block:
        return None
    return WidenedLinear(kernel, kernels["widened_totals"], dtype, weight, block, bias, in_place)


def _has_no_numbers(codes: torch.Tensor) -> bool:
    step = max(1, _PIECE // codes.shape[1])
    pieces = codes.view(torch.uint8).split(step)
    return any(bool((piece & _NO_NUMBER == _NO_NUMBER).any()) for piece in pieces)


def _panels_of(weight: QuantizedWeight, width: int, inputs: int, pairs: bool, in_place: bool) -> torch.Tensor:
    """Codes as the kernel reads them; outputs and inputs that there are not are 0. pairs: two inputs of eight outputs as the instruction
    leaves them that puts the two bytes of a bfloat16 together."""
    outputs, step = len(weight.codes), at.INPUTS_OF_STEP[weight.element]
    panels, steps = -(-outputs // width), inputs // step
    nbytes = inputs // 2 if weight.element in NIBBLES else inputs
    memory = memory_for(weight, panels * width * nbytes, width, in_place)
    codes = memory.view(_STEP[step]).view(panels, steps, width)
    at_once = max(1, _PIECE // (inputs * width))
    for panel in range(0, panels, at_once):
        own = weight.codes[panel * width : (panel + at_once) * width].view(torch.uint8)
        count = -(-len(own) // width)
        piece = torch.zeros(count * width, nbytes, dtype=torch.uint8)
        piece[: len(own), : own.shape[1]] = own
        in_steps = piece.view(codes.dtype).view(count, width, steps)
        if pairs:
            in_steps = in_steps.view(count, width // 32, 2, 4, 4, steps).transpose(2, 3)
            in_steps = in_steps.reshape(count, width, steps)
        codes[panel : panel + count] = in_steps.transpose(1, 2)
    return memory


def _zeros(weight: QuantizedWeight, panels: int, width: int) -> torch.Tensor | None:
    """int8 [panels, groups, width], or [width] of all."""
    if weight.zeros is not None:
        return grid_in_panels(expanded(weight, weight.zeros.to(torch.int8)), panels, width)
    return torch.full((width,), MIDDLE, dtype=torch.int8) if weight.element == "int4" else None
