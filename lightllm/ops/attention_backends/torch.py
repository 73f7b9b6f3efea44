"""Attention by slots in torch, for a CPU: an entry at a time, in place where its slots are one run, so dense
keys and values gain nothing; short contexts together.

The query heads that share a KV head are treated as one group, so keys and values are never repeated in memory. What torch's
own attention computes goes through it; soft caps, ALiBi, sinks, and windows over prefill chunks go through `_attend`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_contexts import (
    EntryContext,
    PaddedContexts,
    context_of,
    contexts_of,
    gather_buffer,
)
from lightllm.ops.attention_spec import AttentionSpec, BlockSparsity
from lightllm.ops.kv_layer import KvLayer

_SCORES = 1 << 22
"""Scores that `_attend` holds at a time: 16 MiB of float32."""


def _decode(call: AttentionCall) -> None:
    q, kv, metadata, spec, out, _ = call
    metadata = metadata.decode_by_token()
    contexts = contexts_of(metadata, q.dtype, kv.bytes_per_slot)
    kv_heads, head_dim = kv.kv_heads, kv.head_dim
    count = metadata.num_decode
    grouped = (count, kv_heads, q.shape[1] // kv_heads, head_dim)
    if contexts.padded is not None:
        _decode_together(q[:count].reshape(grouped), kv, contexts.padded, spec, out[:count].view(grouped))
        return
    outputs = out[:count].view(grouped).unbind(0)
    buffer = gather_buffer(kv.data, contexts)
    if not spec.is_product_only:
        queries = q[:count].reshape(grouped).unbind(0)
        for entry, query, output in zip(contexts.decode, queries, outputs):
            keys, values = _context(kv, q.dtype, entry, buffer, spec.window)
            distance = torch.arange(keys.shape[1] - 1, -1, -1, device=q.device)
            output.copy_(_attend(query[:, :, None], keys, values, distance, spec)[:, :, 0])
        return
    if kv.data.dtype != torch.float32 or q.dtype != torch.float32:
        queries = q[:count].reshape(grouped).unbind(0)
        for entry, query, output in zip(contexts.decode, queries, outputs):
            keys, values = _context(kv, q.dtype, entry, buffer, spec.window)
            output.copy_(
                F.scaled_dot_product_attention(query[None], keys[None], values[None], scale=spec.scale)[0]
            )
        return
    queries = (q[:count] * spec.scale).view(grouped).unbind(0)
    bmm, softmax = torch.bmm, torch.softmax
    for entry, query, output in zip(contexts.decode, queries, outputs):
        keys, values = _context(kv, q.dtype, entry, buffer, spec.window)
        bmm(softmax(bmm(query, keys.transpose(1, 2)), -1), values, out=output)


def _decode_together(
    query: torch.Tensor, kv: KvLayer, padded: PaddedContexts, spec: AttentionSpec, out: torch.Tensor
) -> None:
    """query, out: [n, kv_heads, group, head_dim]."""
    context = kv.read(padded.slots, query.dtype).view(len(query), padded.length, -1, kv.head_dim)
    keys, values = context.transpose(1, 2).chunk(2, 1)
    if spec.is_product_only and not 0 < spec.window < padded.length:
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=padded.mask, scale=spec.scale
        )
        out.copy_(attended)
        return
    distance = padded.kv_lens[:, None] - 1 - torch.arange(padded.length, device=query.device)
    out.copy_(_attend(query[:, :, :, None], keys, values, distance[:, None, None, None], spec)[:, :, :, 0])


def _prefill(call: AttentionCall) -> None:
    q, kv, metadata, spec, out, _ = call
    contexts = contexts_of(metadata, q.dtype, kv.bytes_per_slot)
    kv_heads, head_dim = kv.kv_heads, kv.head_dim
    group = q.shape[1] // kv_heads
    buffer = gather_buffer(kv.data, contexts)
    for entry in contexts.prefill:
        tokens = slice(entry.start, entry.start + entry.q_len)
        grouped = (entry.q_len, kv_heads, group, head_dim)
        query = q[tokens].reshape(grouped).permute(1, 2, 0, 3)
        output = out[tokens].view(grouped).permute(1, 2, 0, 3)
        keys, values = _context(kv, q.dtype, entry, buffer)
        if not spec.is_product_only or 0 < spec.window < entry.kv_len:
            _attend_in_blocks(query, keys, values, spec, output)
            continue
        shape = (kv_heads, group, entry.kv_len, head_dim)
        attended = F.scaled_dot_product_attention(
            query,
            keys[:, None].expand(shape),
            values[:, None].expand(shape),
            attn_mask=entry.mask,
            is_causal=entry.causal,
            scale=spec.scale,
        )
        output.copy_(attended)


def _attend_in_blocks(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spec: AttentionSpec, out: torch.Tensor
) -> None:
    """One chunk in blocks of queries: bounded memory, and keys that no query of a block sees are skipped.

    query, out: [kv_heads, group, q_len, head_dim]; keys, values: [kv_heads, kv_len, head_dim].
    """
    (kv_heads, group, q_len, _), kv_len = query.shape, keys.shape[1]
    block = max(_SCORES // (kv_heads * group * kv_len), 16)
    for start in range(0, q_len, block):
        stop = min(start + block, q_len)
        position, last = kv_len - q_len + start, kv_len - q_len + stop
        first = max(position + 1 - spec.window, 0) if spec.window else 0
        distance = torch.arange(position, last, device=query.device)[:, None]
        distance = distance - torch.arange(first, last, device=query.device)
        attended = _attend(
            query[:, :, start:stop], keys[:, first:last], values[:, first:last], distance, spec, first
        )
        out[:, :, start:stop].copy_(attended)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    distance: torch.Tensor,
    spec: AttentionSpec,
    first: int = 0,
) -> torch.Tensor:
    """Attention of every spec, in float32.

    query: [..., kv_heads, group, q, head_dim]; keys, values: [..., kv_heads, k, head_dim]; distance: integers that
    broadcast to [..., kv_heads, group, q, k]; first: position of the first key. Returns float32 of the query's shape.
    """
    kv_heads, group = query.shape[-4:-2]
    scores = (query.float() * spec.scale) @ keys.float().transpose(-1, -2).unsqueeze(-3)
    if spec.softcap:
        scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
    if spec.alibi_slopes is not None:
        scores -= spec.alibi_slopes.view(kv_heads, group, 1, 1) * distance
    outside = distance < 0
    if spec.window:
        outside = outside | (distance >= spec.window)
    if spec.sparsity is not None:
        outside = outside | _left_out(distance, spec.sparsity, kv_heads, group, first)
    scores.masked_fill_(outside, float("-inf"))
    if spec.sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = spec.sinks.view(kv_heads, group, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    return weights @ values.float().unsqueeze(-3)


def _left_out(
    distance: torch.Tensor, sparsity: BlockSparsity, kv_heads: int, group: int, first: int
) -> torch.Tensor:
    """bool, broadcasts as `distance` does."""
    key = torch.arange(first, first + distance.shape[-1], device=distance.device)
    key_block = key // sparsity.block_size
    far = (key + distance) // sparsity.block_size - key_block >= sparsity.local_blocks
    offsets = sparsity.offsets.view(kv_heads, group, 1, 1)
    return far & ((key_block + 1 + offsets) % sparsity.stride != 0)


def _context(
    kv: KvLayer, dtype: torch.dtype, entry: EntryContext, buffer: torch.Tensor | None, window: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of an entry, the last `window` of them if it is given: [kv_heads, kv_len, head_dim]; views, but for codes, of
    which numbers of `dtype` are made."""
    if kv.scales is None:
        context = context_of(kv.data, entry, buffer, window)
    else:
        slots = entry.slots
        if slots is None:
            slots = torch.arange(entry.first_slot, entry.first_slot + entry.kv_len, device=kv.data.device)
        context = kv.read(slots[-window:], dtype)
    keys, values = context.transpose(0, 1).chunk(2)
    return keys, values


class TorchAttention:
    graphs = False
    dense_prefill = False
    decode = staticmethod(_decode)
    prefill = staticmethod(_prefill)

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        return True
