"""Where codes of weights and their scales lie for kernels that compute some outputs at a time, a panel of them."""

from __future__ import annotations

import torch

from lightllm.ops.huge_pages import in_huge_pages, mapped
from lightllm.ops.quantized_weight import QuantizedWeight

_WIDEST = 64
"""Outputs of a panel, at most; of all panels a divisor of it."""


def memory_of_panels(outputs: int, width: int) -> torch.Tensor:
    """uint8 [outputs, width], with room behind it for outputs of whole panels."""
    padded = -(-outputs // _WIDEST) * _WIDEST
    return mapped(padded * width)[: outputs * width].view(outputs, width)


def memory_for(weight: QuantizedWeight, nbytes: int, outputs: int, in_place: bool) -> torch.Tensor:
    """uint8 [nbytes]: that of the codes, in which each panel of so many outputs lies where they lay, or a new one."""
    codes = weight.codes.view(torch.uint8)
    memory = codes.untyped_storage()
    if (
        in_place
        and codes.shape[1] * outputs * -(-len(codes) // outputs) == nbytes <= memory.nbytes()
        and not codes.storage_offset()
    ):
        return torch.as_strided(codes, (nbytes,), (1,))
    return in_huge_pages(nbytes)


def expanded(weight: QuantizedWeight, values: torch.Tensor) -> torch.Tensor:
    """[rows, groups] of the weight's scales or zeros to [out, groups]."""
    return values if weight.scale_rows is None else values[weight.scale_rows]


def grid_in_panels(values: torch.Tensor, panels: int, width: int) -> torch.Tensor:
    """[out, groups] to [panels, groups, width], 0 behind the last output."""
    outputs, groups = values.shape
    padded = values.new_zeros(panels * width, groups)
    padded[:outputs] = values
    return padded.view(panels, width, groups).transpose(1, 2).contiguous()
