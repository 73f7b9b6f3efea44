"""Attention by slots in plain torch: an entry at a time, in place where its slots are one run; short contexts together.

The query heads that share a KV head are treated as one group, so keys and values are never repeated in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.attention_plan import AttentionPlan, EntryPlan


def decode_attention(
    q: torch.Tensor, kv: torch.Tensor, plan: AttentionPlan, scale: float, out: torch.Tensor
) -> None:
    kv_heads, head_dim = kv.shape[1] // 2, kv.shape[2]
    count = plan.num_decode
    grouped = (count, kv_heads, q.shape[1] // kv_heads, head_dim)
    if plan.padded is not None:
        context = kv.index_select(0, plan.padded.slots).view(
            count, plan.padded.length, 2 * kv_heads, head_dim
        )
        keys, values = context.transpose(1, 2).chunk(2, 1)
        attended = F.scaled_dot_product_attention(
            q[:count].reshape(grouped), keys, values, attn_mask=plan.padded.mask, scale=scale
        )
        out[:count].view(grouped).copy_(attended)
        return
    outputs = out[:count].view(grouped).unbind(0)
    buffer = _gather_buffer(kv, plan)
    if kv.dtype != torch.float32 or q.dtype != torch.float32:
        queries = q[:count].reshape(grouped).unbind(0)
        for entry, query, output in zip(plan.decode, queries, outputs):
            keys, values = _context(kv, entry, buffer)
            output.copy_(
                F.scaled_dot_product_attention(query[None], keys[None], values[None], scale=scale)[0]
            )
        return
    queries = (q[:count] * scale).view(grouped).unbind(0)
    bmm, softmax = torch.bmm, torch.softmax
    for entry, query, output in zip(plan.decode, queries, outputs):
        keys, values = _context(kv, entry, buffer)
        bmm(softmax(bmm(query, keys.transpose(1, 2)), -1), values, out=output)


def prefill_attention(
    q: torch.Tensor, kv: torch.Tensor, plan: AttentionPlan, scale: float, out: torch.Tensor
) -> None:
    kv_heads, head_dim = kv.shape[1] // 2, kv.shape[2]
    group = q.shape[1] // kv_heads
    buffer = _gather_buffer(kv, plan)
    for entry in plan.prefill:
        tokens = slice(entry.start, entry.start + entry.q_len)
        grouped = (entry.q_len, kv_heads, group, head_dim)
        query = q[tokens].reshape(grouped).permute(1, 2, 0, 3)
        keys, values = _context(kv, entry, buffer)
        shape = (kv_heads, group, entry.kv_len, head_dim)
        attended = F.scaled_dot_product_attention(
            query,
            keys[:, None].expand(shape),
            values[:, None].expand(shape),
            attn_mask=entry.mask,
            is_causal=entry.causal,
            scale=scale,
        )
        out[tokens].view(grouped).copy_(attended.permute(2, 0, 1, 3))


def _gather_buffer(kv: torch.Tensor, plan: AttentionPlan) -> torch.Tensor | None:
    """One buffer for all gathered contexts of a layer: it stays in the cache, and is not paged in anew each time."""
    if not plan.longest_gather:
        return None
    return torch.empty((plan.longest_gather, *kv.shape[1:]), dtype=kv.dtype, device=kv.device)


def _context(
    kv: torch.Tensor, entry: EntryPlan, buffer: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of an entry: views [kv_heads, kv_len, head_dim]."""
    if entry.slots is None:
        context = kv.narrow(0, entry.first_slot, entry.kv_len)
    else:
        assert buffer is not None
        context = buffer.narrow(0, 0, entry.kv_len)
        torch.index_select(kv, 0, entry.slots, out=context)
    keys, values = context.transpose(0, 1).chunk(2)
    return keys, values
