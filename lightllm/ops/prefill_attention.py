"""Causal attention of prefill chunks over their cached prefix and themselves, read by slots (TokenAttention)."""

from __future__ import annotations

import torch

from lightllm.ops.attention_plan import AttentionPlan
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.gpu_attention_plan import GpuAttentionPlan
from lightllm.ops.torch import attention as torch_impl


def prefill_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    plan: AttentionPlan | GpuAttentionPlan,
    spec: AttentionSpec,
    out: torch.Tensor,
    fresh: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """out[t] = softmax(score(q[t], K)) V for every token t of the plan's prefill entries.

    Token j of an entry (from 0) has position kv_len - q_len + j and sees the positions up to it, or the last `window` of
    them; the score is the `spec`'s. q, out: [T, heads, head_dim]; kv: [slots + 1, 2 * kv_heads, head_dim], keys
    first; query head h reads KV head h // (heads / kv_heads). Scores and softmax are float32. The keys and values of
    the new tokens are already in `kv`. fresh: the rotated keys and the values of the batch's own tokens, each
    [T, kv_heads, head_dim], which a GPU reads instead where the plan says that no chunk has a cached prefix.
    """
    if isinstance(plan, GpuAttentionPlan):
        plan.backends.prefill_of(spec).prefill(q, kv, plan, spec, out, fresh)
    else:
        torch_impl.prefill_attention(q, kv, plan, spec, out)
