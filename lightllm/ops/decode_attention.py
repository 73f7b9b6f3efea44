"""Attention of one new token per request over its context, read by slots (TokenAttention)."""

from __future__ import annotations

import torch

from lightllm.ops.attention_plan import AttentionPlan
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.gpu_attention_plan import GpuAttentionPlan
from lightllm.ops.torch import attention as torch_impl


def decode_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    plan: AttentionPlan | GpuAttentionPlan,
    spec: AttentionSpec,
    out: torch.Tensor,
) -> None:
    """out[i] = softmax(score(q[i], K)) V over the context of the plan's i-th decode entry, new token included.

    The score is the `spec`'s. q, out: [T, heads, head_dim], the decode entries' tokens first; kv: [slots + 1, 2 * kv_heads, head_dim], keys
    first; query head h reads KV head h // (heads / kv_heads). Scores and softmax are float32. The keys and values of
    the new tokens are already in `kv`.
    """
    if isinstance(plan, GpuAttentionPlan):
        plan.backends.decode_of(spec).decode(q, kv, plan, spec, out)
    else:
        torch_impl.decode_attention(q, kv, plan, spec, out)
