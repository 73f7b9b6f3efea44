"""What one forward pass computes: built by the backend from a `Round`, read by every layer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lightllm.ops.attention_plan import AttentionPlan


@dataclasses.dataclass
class Batch:
    """n entries (requests) with T = sum(q_len) new tokens, decode entries first.

    Host lists (`q_lens`, `kv_lens`) are what the CPU implementation loops over; the tensors are what kernels read.
    """

    input_ids: "torch.Tensor"
    """int64 [T]"""
    positions: "torch.Tensor"
    """int64 [T]: position of each new token in its request."""
    slots: "torch.Tensor"
    """int64 [T]: KV slot that each new token's K and V are written to."""
    rows: "torch.Tensor"
    """int64 [n]: row of each entry in `req_to_token`."""
    q_lens: list[int]
    """New tokens of each entry, n."""
    kv_lens: list[int]
    """Context length of each entry after this pass (new tokens included), n."""
    num_decode: int
    """The first `num_decode` entries have q_len 1 and come from decoding."""
    logit_index: "torch.Tensor"
    """int64 [S]: which of the T positions need logits, in order."""
    req_to_token: "torch.Tensor"
    """int32 [max_rows + 1, max_len]: KV slot of every position of every row, new tokens included."""
    kv: "list[torch.Tensor]"
    """One tensor a layer: [slots + 1, 2 * kv_heads, head_dim], K heads first, then V; the last slot absorbs padding."""

    plan: "AttentionPlan | None" = None
    """Filled by `TpPartBaseModel.forward`: where each entry's context lies."""
    rotary: "tuple[torch.Tensor, torch.Tensor] | None" = None
    """Filled by `TpPartBaseModel.forward`: cosines and sines of the new tokens, each [T, 1, head_dim]."""
