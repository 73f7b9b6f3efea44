"""Causal attention of prefill chunks over their cached prefix and themselves, read by slots (TokenAttention)."""

from __future__ import annotations

import torch

from lightllm.ops.attention_plan import AttentionPlan
from lightllm.ops.torch import attention as torch_impl


def prefill_attention(
    q: torch.Tensor, kv: torch.Tensor, plan: AttentionPlan, scale: float, out: torch.Tensor
) -> None:
    """out[t] = softmax(scale * q[t] Kᵀ) V for every token t of the plan's prefill entries.

    Token j of an entry (from 0) sees the context positions 0 .. kv_len - q_len + j. q, out: [T, heads, head_dim];
    kv: [slots + 1, 2 * kv_heads, head_dim], keys first; query head h reads KV head h // (heads / kv_heads). Scores
    and softmax are float32. The keys and values of the new tokens are already in `kv`.
    """
    torch_impl.prefill_attention(q, kv, plan, scale, out)
