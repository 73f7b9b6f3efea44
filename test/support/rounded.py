"""What `--quant_type` makes of a matrix, written from the formulas in `lightllm/quantization/rounding.py` with numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

GROUPS = {"w8a8": 0, "w8a16": 128, "w4a16": 128, "w4a16-32": 32, "fp8": 0, "fp8-64": 64}


def group_of(name: str, inputs: int) -> int:
    """0: all inputs."""
    group = GROUPS[name]
    for smaller in (group, group // 2, group // 4, group // 8):
        if smaller >= 16 and inputs % smaller == 0:
            return smaller
    return group


def rounded(weight: torch.Tensor, name: str, scale_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """weight: [out, in]. Returns what its codes stand for, float32."""
    values = weight.float().numpy()
    group = group_of(name, values.shape[1]) or values.shape[1]
    found = [_group(values[:, i : i + group], name, scale_dtype) for i in range(0, values.shape[1], group)]
    return torch.from_numpy(np.concatenate(found, 1))


def _group(values: np.ndarray, name: str, dtype: torch.dtype) -> np.ndarray:
    low, high = (np.minimum(values.min(1, keepdims=True), 0), np.maximum(values.max(1, keepdims=True), 0))
    most = np.abs(values).max(1, keepdims=True)

    def kept(scale: np.ndarray) -> np.ndarray:
        return torch.from_numpy(scale).to(dtype).float().numpy()

    if name.startswith("w4"):
        scale = kept((high - low) / np.float32(15))
        zero = np.round(-low / scale).clip(0, 15)
        return ((np.round(values / scale) + zero).clip(0, 15) - zero) * scale
    if name.startswith("fp8"):
        scale = kept(most / np.float32(448))
        return torch.from_numpy(values / scale).to(torch.float8_e4m3fn).float().numpy() * scale
    scale = kept(most / np.float32(127))
    return np.round(values / scale).clip(-127, 127) * scale


def rounded_checkpoint(
    tensors: dict[str, torch.Tensor],
    type_of: Callable[[str], str | None],
    scale_dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """A checkpoint with some of its matrices rounded; stacks [count, in, out] too. type_of: of a tensor; None: as it is."""
    found = dict(tensors)
    for tensor_name, tensor in tensors.items():
        name = type_of(tensor_name)
        if name is None:
            continue
        if tensor.dim() == 3:
            found[tensor_name] = torch.stack([rounded(one.T, name, scale_dtype).T for one in tensor])
        else:
            found[tensor_name] = rounded(tensor, name, scale_dtype)
    return found
