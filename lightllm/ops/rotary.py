"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout, and its tables.

Element i of a head is paired with element i + head_dim / 2, as in every Hugging Face Llama-like checkpoint.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lightllm.ops.torch import rotary as torch_impl

if TYPE_CHECKING:
    from collections.abc import Mapping


def inverse_frequencies(head_dim: int, theta: float, scaling: "Mapping[str, float | str]") -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each pair.

    `scaling["rope_type"]`: "default"; "linear" (positions divided by `factor`); "llama3" (Llama 3.1: long wavelengths
    divided by `factor`, short ones kept, a linear blend between). The caller has checked the type.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    kind = scaling["rope_type"]
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    return frequencies


def _llama3(frequencies: torch.Tensor, scaling: "Mapping[str, float | str]") -> torch.Tensor:
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequencies
    blend = (context / wavelength - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(wavelength > context / low, frequencies / factor, blended)
    return torch.where(wavelength < context / high, frequencies, scaled)


def rotary_table(inverse: torch.Tensor, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Cosines and sines of positions [start, stop): `dtype` [stop - start, 2, head_dim]; each half of a row repeats."""
    angles = torch.arange(start, stop, dtype=torch.float32, device=inverse.device).outer(inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()), dim=1).to(dtype)


def rotary_embedding(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    """Rotates the first `rotary_dim` elements of each head by its token's angles; the others pass through.

    x: [T, heads, head_dim], any strides; cos, sin: [T, 1, rotary_dim] rows of `rotary_table`, rotary_dim <= head_dim.
    Element i is paired with i + rotary_dim / 2; interleaved: element 2i with 2i + 1 (GPT-J, ChatGLM, Cohere). The
    tables are the same for both: angle i stands at i and at i + rotary_dim / 2. Returns a new tensor.
    """
    if x.is_cuda:
        from lightllm.ops.triton import rotary as triton_impl

        return triton_impl.rotary_embedding(x, cos, sin, interleaved)
    return torch_impl.rotary_embedding(x, cos, sin, interleaved)
