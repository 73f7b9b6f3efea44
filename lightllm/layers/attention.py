"""Attention of a whole batch: decode rows and prefill chunks side by side."""

from __future__ import annotations

import torch

from lightllm.ops.attention_plan import AttentionPlan
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.decode_attention import decode_attention
from lightllm.ops.gpu_attention_plan import GpuAttentionPlan
from lightllm.ops.prefill_attention import prefill_attention


def attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    plan: AttentionPlan | GpuAttentionPlan,
    spec: AttentionSpec,
    fresh: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Every token over its context. Keys and values of the new tokens are already in `kv`.

    q: [T, heads, head_dim]; kv: [slots + 1, 2 * kv_heads, head_dim]; fresh: the new tokens' rotated keys and values,
    see `prefill_attention`. Returns [T, heads * head_dim].
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if plan.num_decode:
        decode_attention(q, kv, plan, spec, out)
    if plan.num_prefill:
        prefill_attention(q, kv, plan, spec, out, fresh)
    return out.view(q.shape[0], -1)
