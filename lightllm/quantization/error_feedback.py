"""Rounds a matrix so that its products with calibration inputs change least (GPTQ, arXiv 2210.17323, algorithm 1).

Columns are rounded one after the other; what rounding one of them changes in the products is made up for, as far as it can
be, by the columns that are not rounded yet. With H = XᵀX of the inputs X and U the upper Cholesky factor of its inverse:

    error = (w_i - rounded(w_i)) / U_ii            w_j -= error * U_ij   for all j > i
"""

from __future__ import annotations

import torch

from lightllm.quantization.layout import WHOLE
from lightllm.quantization.quant_types import QuantType
from lightllm.quantization.rounding import Grid, codes_of, grid_of, values_of

_BLOCK = 128
"""Columns after which errors are passed on to all that follow, in one product."""
_DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: section 3.3, step 3."""


def codes_with_feedback(
    weight: torch.Tensor, gram: torch.Tensor, kind: QuantType, group: int, dtype: torch.dtype
) -> tuple[torch.Tensor, Grid]:
    """Codes [out, in] and their grid, as `codes_of` and `grid_of` have them; inputs that were always 0 are rounded plainly.

    weight: float32 [out, in]; gram: float32 [in, in], XᵀX of all inputs, which is written over; group: inputs that share a scale;
    dtype: of the scales.
    """
    factor, weight = _factor(gram), weight.clone()
    inputs = weight.shape[1]
    whole = grid_of(weight, kind, WHOLE, dtype) if group == WHOLE else None
    grids = [] if whole is None else [whole]
    codes: list[torch.Tensor] = []
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = torch.empty(len(weight), stop - start)
        for i in range(start, stop):
            if whole is None and i % group == 0:
                grids.append(grid_of(weight[:, i : i + group], kind, WHOLE, dtype))
            column = weight[:, i : i + 1]
            code = codes_of(column, kind, WHOLE, grids[-1])
            error = (column - values_of(code, kind, WHOLE, grids[-1])) / factor[i, i]
            weight[:, i + 1 : stop] -= error * factor[i, i + 1 : stop]
            errors[:, i - start] = error[:, 0]
            codes.append(code)
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    zeros = [grid.zeros for grid in grids if grid.zeros is not None]
    grid = Grid(torch.cat([grid.scales for grid in grids], 1), torch.cat(zeros, 1) if zeros else None)
    return torch.cat(codes, 1), grid


def _factor(gram: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse."""
    diagonal = gram.diagonal()
    diagonal[diagonal == 0] = 1
    damping = _DAMPING * diagonal.mean()
    while True:  # more, where calibration was on fewer tokens than there are inputs
        damped = gram + damping * torch.eye(len(gram))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        damping *= 10
