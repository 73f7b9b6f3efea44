"""Keys and values in few bits: codes, and what each group of a head's numbers is multiplied with (`--llm_kv_type`).

A vector of one head of one token is quantized by itself, symmetrically: the largest number of a group becomes the largest code.
Scales are bfloat16: the codes are made with the scale as it is kept, so that its rounding costs nothing. Codes of 8 bits are
exact in bfloat16 and float16, so whoever reads them may multiply codes and apply the scale to the product.
"""

from __future__ import annotations

import dataclasses
import math

import torch

SCALE_DTYPE = torch.bfloat16
LEAST_SCALE = 2.0**-100
"""That of a vector of zeros."""


@dataclasses.dataclass(frozen=True)
class KvFormat:
    name: str
    """As `--llm_kv_type` has it."""
    dtype: torch.dtype
    """Of the codes, as they are kept."""
    largest: float
    """Code"""
    group: int = 0
    """So many numbers share a scale, or fewer where they do not divide a head; 0: a head."""

    per_byte: int = 1
    """Codes. Of two the lower half of a byte is one of the head's first half, the upper one of its second."""

    def groups(self, head_dim: int) -> int:
        """Scales of one head of one token."""
        return head_dim // math.gcd(head_dim, self.group) if self.group else 1

    def bytes_per_head(self, head_dim: int) -> int:
        """Of one key or value, its scales included."""
        return head_dim * self.dtype.itemsize // self.per_byte + self.groups(head_dim) * SCALE_DTYPE.itemsize


INT8 = KvFormat("int8kv", torch.int8, 127.0)
FP8 = KvFormat("fp8kv", torch.float8_e4m3fn, 448.0)
INT4 = KvFormat("int4kv", torch.uint8, 7.0, group=32, per_byte=2)
FORMATS = {one.name: one for one in (INT8, FP8, INT4)}
BY_DTYPE = {one.dtype: one for one in FORMATS.values()}


def quantize(
    x: torch.Tensor, format: KvFormat, groups: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [..., head_dim] of any dtype; groups: None: as many as the format has. Returns codes
    [..., head_dim / per_byte] and scales [..., groups]. A vector that is not finite has a scale that is not finite."""
    grouped = x.float().unflatten(-1, (groups or format.groups(x.shape[-1]), -1))
    scales = (grouped.abs().amax(-1) / format.largest).clamp_min(LEAST_SCALE).to(SCALE_DTYPE)
    codes = (grouped / scales.float()[..., None]).clamp(-format.largest, format.largest)
    if not format.dtype.is_floating_point:
        codes = codes.round()
    if format.per_byte == 2:
        lower, upper = (codes.flatten(-2) + 8).to(torch.uint8).chunk(2, -1)
        return lower | upper << 4, scales
    return codes.to(format.dtype).flatten(-2), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """codes: [..., head_dim / per_byte]; scales: [..., groups]. Returns [..., head_dim], rounded to dtype once."""
    numbers = codes.float()
    if BY_DTYPE[codes.dtype].per_byte == 2:
        numbers = torch.cat((codes & 15, codes >> 4), -1).float() - 8
    grouped = numbers.unflatten(-1, (scales.shape[-1], -1))
    return (grouped * scales.float()[..., None]).to(dtype).flatten(-2)
