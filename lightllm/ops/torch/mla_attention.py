"""Multi-head latent attention in plain torch, in float32, an entry at a time or short contexts together."""

from __future__ import annotations

import torch

from lightllm.ops.attention_plan import AttentionPlan
from lightllm.ops.torch.attention import context_of, gather_buffer

_SCORES = 1 << 22
"""Scores held at a time: 16 MiB of float32."""


def mla_decode_attention(
    q: torch.Tensor, kv: torch.Tensor, plan: AttentionPlan, scale: float, out: torch.Tensor
) -> None:
    count, width = plan.num_decode, out.shape[2]
    queries = q[:count].float() * scale
    padded = plan.padded
    if padded is not None:
        latents = kv.index_select(0, padded.slots).view(count, padded.length, -1).float()
        scores = queries @ latents.transpose(1, 2)
        if padded.mask is not None:
            scores += padded.mask[:, :, 0]
        out[:count].copy_(scores.softmax(-1) @ latents[:, :, :width])
        return
    buffer = gather_buffer(kv, plan)
    for entry, query, output in zip(plan.decode, queries, out):
        latents = context_of(kv, entry, buffer)[:, 0].float()
        output.copy_((query @ latents.T).softmax(-1) @ latents[:, :width])


def mla_context(kv: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    parts = [
        kv.narrow(0, entry.first_slot, entry.kv_len)
        if entry.slots is None
        else kv.index_select(0, entry.slots)
        for entry in plan.prefill
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[:, 0]


def mla_prefill_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, scale: float, out: torch.Tensor
) -> None:
    context = 0
    for entry in plan.prefill:
        keys = k[context : context + entry.kv_len].transpose(0, 1).float()
        values = v[context : context + entry.kv_len].transpose(0, 1).float()
        context += entry.kv_len
        block = max(_SCORES // (q.shape[1] * entry.kv_len), 16)
        for start in range(0, entry.q_len, block):
            stop = min(start + block, entry.q_len)
            seen = entry.kv_len - entry.q_len + stop
            tokens = slice(entry.start + start, entry.start + stop)
            scores = (q[tokens].transpose(0, 1).float() * scale) @ keys[:, :seen].transpose(1, 2)
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device)
            scores.masked_fill_(hidden.triu_(seen - (stop - start) + 1), float("-inf"))
            out[tokens].copy_((scores.softmax(-1) @ values[:, :seen]).transpose(0, 1))
