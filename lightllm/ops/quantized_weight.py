"""A weight in few bits as it lies in memory: one form for all formats of checkpoints, which kernels compute with.

weight[o, i] = (code[o, i] - zero[r, g]) * scale[r, g]     r: row of the scales for output o, g: group of input i
"""

from __future__ import annotations

import dataclasses
import functools

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the 16 codes of a float of 4 bits stand for (OCP Microscaling Formats 1.0, table 5.3.3)."""
MIDDLE = 8
"""The zero of int4 codes, where a weight has no zeros of its own."""
NIBBLES = ("int4", "e2m1")
"""Elements of which a byte holds two."""


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """[out, in]; all tensors are on one device."""

    element: str
    """"int8", "int4" (0 to 15), "e4m3" or "e2m1"."""
    codes: torch.Tensor
    """int8 or float8_e4m3fn [out, in]; of 4 bits uint8 [out, in / 2], even inputs in the low bits."""
    scales: torch.Tensor
    """[rows, groups] of any floating dtype, or float8_e8m0fnu: a power of two."""
    zeros: torch.Tensor | None
    """int8 or uint8 [rows, groups] in the codes' numbers; None: 0, of int4 `MIDDLE`."""
    group: int
    """Input i is of group i // group."""
    scale_rows: torch.Tensor | None = None
    """int32 [out], the row of each output's scales; None: its own."""
    group_of: torch.Tensor | None = None
    """int32 [in], instead of `group`."""
    inputs: torch.Tensor | None = None
    """int64 [in]: column j of all the above is of input inputs[j]; None: in order."""

    @property
    def shape(self) -> tuple[int, int]:
        outputs, width = self.codes.shape
        return outputs, width * 2 if self.element in NIBBLES else width

    @property
    def nbytes(self) -> int:
        tensors = (self.codes, self.scales, self.zeros, self.scale_rows, self.group_of, self.inputs)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def dequantise(self, first: int, stop: int) -> torch.Tensor:
        """float32 [stop - first, in]: the outputs [first, stop), columns as they lie (see `inputs`)."""
        numbers = self._numbers(first, stop)  # of int4 without zeros less `MIDDLE`
        scales = self._of_rows(self.scales, first, stop).float()
        zeros = None if self.zeros is None else self._of_rows(self.zeros, first, stop).float()
        outputs, inputs = numbers.shape
        if self.group_of is not None:
            scales, zeros = scales[:, self.group_of], None if zeros is None else zeros[:, self.group_of]
        elif scales.shape[1] > 1:
            if inputs % self.group:
                scales = scales.repeat_interleave(self.group, 1)[:, :inputs]
                zeros = None if zeros is None else zeros.repeat_interleave(self.group, 1)[:, :inputs]
            else:
                numbers = numbers.view(outputs, -1, self.group)
                scales, zeros = scales[:, :, None], None if zeros is None else zeros[:, :, None]
        if zeros is not None:
            numbers -= zeros
        return numbers.mul_(scales).view(outputs, inputs)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[out, in], columns in the order of the inputs."""
        outputs, inputs = self.shape
        whole = torch.empty(outputs, inputs, dtype=dtype, device=self.codes.device)
        step = max(1, (1 << 20) // inputs)
        for first in range(0, outputs, step):
            rows = self.dequantise(first, min(first + step, outputs))
            if self.inputs is None:
                whole[first : first + step] = rows
            else:
                whole[first : first + step, self.inputs] = rows.to(dtype)
        return whole

    def _numbers(self, first: int, stop: int) -> torch.Tensor:
        """What codes stand for: a new float32 [stop - first, in]."""
        codes = self.codes[first:stop]
        if self.element == "int8":
            return codes.float()
        table = _table(self.element, self.zeros is None, codes.device)
        found = table.index_select(0, codes.reshape(-1).view(torch.uint8).int())
        return found.view(torch.float32).view(len(codes), -1)

    def _of_rows(self, values: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Of [rows, groups] those of the outputs [first, stop)."""
        if self.scale_rows is None:
            return values[first:stop]
        rows = self.scale_rows[first:stop]
        if values.dtype == torch.float8_e8m0fnu:
            return values.view(torch.uint8)[rows].view(torch.float8_e8m0fnu)
        return values[rows]


@functools.cache
def _table(element: str, centred: bool, device: torch.device) -> torch.Tensor:
    """[256]: what each byte of codes stands for, float32 or two of them as one float64. A look-up is three times as fast on a CPU
    as torch's conversion of float8, or as taking a byte apart. centred: of int4, less `MIDDLE`."""
    codes = torch.arange(256, dtype=torch.uint8)
    if element == "e4m3":
        return codes.view(torch.float8_e4m3fn).float().to(device)
    numbers = torch.tensor(E2M1) if element == "e2m1" else torch.arange(16.0) - (MIDDLE if centred else 0)
    both = torch.stack((numbers[(codes & 15).int()], numbers[(codes >> 4).int()]), -1)
    return both.view(torch.float64).flatten().to(device)
