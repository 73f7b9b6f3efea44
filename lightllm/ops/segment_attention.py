"""Attention without a causal order inside segments of one sequence: images, or windows of them, of any lengths side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    scale: float,
    kv_lengths: Sequence[int] | None = None,
) -> torch.Tensor:
    """softmax(scale * q kᵀ) v, where a query sees all keys of its own segment and no others.

    q: [T, heads, head_dim], k, v: [K, heads, head_dim], any strides; lengths: tokens of each segment, T together;
    kv_lengths: keys of each segment, K together, None: as many as queries. Returns a new tensor [T, heads, head_dim].
    Neighbouring segments of one length are computed at once.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    start = kv_start = 0
    for (length, kv_length), run in itertools.groupby(zip(lengths, kv_lengths or lengths, strict=True)):
        count = len(list(run))
        stop, kv_stop = start + count * length, kv_start + count * kv_length
        queries = q[start:stop].unflatten(0, (count, length)).transpose(1, 2)
        keys, values = (x[kv_start:kv_stop].unflatten(0, (count, kv_length)).transpose(1, 2) for x in (k, v))
        attended = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
        out[start:stop] = attended.transpose(1, 2).flatten(0, 1)
        start, kv_start = stop, kv_stop
    return out
