"""The KV memory of one layer: what a layer writes by slots, and what attention reads."""

from __future__ import annotations

import dataclasses
import functools

import torch

from lightllm.ops.kv_codes import BY_DTYPE, KvFormat, dequantize


@dataclasses.dataclass(frozen=True, eq=False)
class KvLayer:
    """One slot holds one token; the last slot absorbs padding."""

    data: torch.Tensor
    """[slots + 1, 2 * kv_heads, head_dim], keys first. With latent attention [slots + 1, 1, latent + rope]: the normalised
    latent vector, then the rotated key that all heads share."""
    kv_heads: int
    """0: latent attention."""
    scales: torch.Tensor | None = None
    """bfloat16 [slots + 1, 2 * kv_heads, groups]: what the groups of each head's codes are multiplied with, see `kv_codes`; None:
    `data` holds the numbers themselves."""

    @functools.cached_property
    def keys(self) -> torch.Tensor:
        """[slots + 1, kv_heads, head_dim], a view."""
        return self.data[:, : self.kv_heads]

    @functools.cached_property
    def values(self) -> torch.Tensor:
        """[slots + 1, kv_heads, head_dim], a view."""
        return self.data[:, self.kv_heads :]

    @property
    def format(self) -> KvFormat:
        """Of the codes. Asked only where there are scales."""
        return BY_DTYPE[self.data.dtype]

    @property
    def head_dim(self) -> int:
        return self.data.shape[2] * (1 if self.scales is None else self.format.per_byte)

    @functools.cached_property
    def bytes_per_slot(self) -> int:
        tensors = [self.data] if self.scales is None else [self.data, self.scales]
        return sum(tensor[0].numel() * tensor.itemsize for tensor in tensors)

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether what is read is what was written, for keys and values of this dtype."""
        return self.scales is None and self.data.dtype == dtype

    def read(self, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[n, 2 * kv_heads, head_dim] of int64 [n] slots, in the dtype of `data`, or where that holds codes in this one."""
        if self.scales is None:
            return self.data.index_select(0, slots)
        # By their bytes: torch moves none of the float8 types.
        codes = self.data.view(torch.uint8).index_select(0, slots).view(self.data.dtype)
        return dequantize(codes, self.scales.index_select(0, slots), dtype)
