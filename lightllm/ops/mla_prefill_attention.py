"""Multi-head latent attention of prefill chunks: contexts are expanded to keys and values of every head first.

    latents = mla_context(kv, plan)                      [C, latent + rope]
    k, v = the layer's up-projection of them             [C, heads, key_dim], [C, heads, value_dim]
    mla_prefill_attention(q, k, v, plan, scale, out)

C = sum of kv_len over the prefill entries. For many queries this needs fewer operations than the absorbed form.
"""

from __future__ import annotations

import torch

from lightllm.ops.attention_plan import AttentionPlan
from lightllm.ops.gpu_attention_plan import GpuAttentionPlan
from lightllm.ops.torch import mla_attention as torch_impl


def mla_context(kv: torch.Tensor, plan: AttentionPlan | GpuAttentionPlan) -> torch.Tensor:
    """What KV memory [slots + 1, 1, width] holds of the prefill entries' contexts, one after another: [C, width]."""
    if isinstance(plan, GpuAttentionPlan):
        from lightllm.ops.triton import mla_prefill_attention as triton_impl

        return triton_impl.mla_context(kv, plan)
    return torch_impl.mla_context(kv, plan)


def mla_prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan | GpuAttentionPlan,
    scale: float,
    out: torch.Tensor,
) -> None:
    """out[t] = softmax(scale * q[t] Kᵀ) V for every token t of the plan's prefill entries, causal as in `prefill_attention`.

    q: [T, heads, key_dim]; k: [C, heads, key_dim] and v: [C, heads, value_dim] of the contexts as `mla_context` orders
    them; out: [T, heads, value_dim]. Scores and softmax are float32.
    """
    if isinstance(plan, GpuAttentionPlan):
        from lightllm.ops.triton import mla_prefill_attention as triton_impl

        triton_impl.mla_prefill_attention(q, k, v, plan, scale, out)
    else:
        torch_impl.mla_prefill_attention(q, k, v, plan, scale, out)
