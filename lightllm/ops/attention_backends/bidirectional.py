"""Attention of spans whose tokens see each other in both directions (images of Gemma 3, arXiv 2503.19786): in torch, on any
device, after a backend has computed the chunks around them causally."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.attention_metadata import AttentionMetadata, BidirectionalSpan
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer


def attend_bidirectionally(
    q: torch.Tensor, kv: KvLayer, metadata: AttentionMetadata, spec: AttentionSpec, out: torch.Tensor
) -> None:
    """Writes `out` of the tokens of `metadata.bidirectional` anew; arguments as of `AttentionCall`. A span's token sees every key up to the span's end that is less than `window`
    positions before it."""
    if not spec.is_product_only:
        raise NotImplementedError("bidirectional spans have plain scores")
    for span in metadata.bidirectional:
        tokens = slice(span.first, span.first + span.tokens)
        context = kv.read(_slots(metadata, span), q.dtype).to(q.dtype).transpose(0, 1)
        keys, values = (part[:, None] for part in context.split(kv.kv_heads))
        grouped = (span.tokens, kv.kv_heads, -1, q.shape[2])
        query = q[tokens].reshape(grouped).permute(1, 2, 0, 3)
        shape = (-1, query.shape[1], -1, -1)
        mask = _inside_window(metadata, span, spec.window) if 0 < spec.window < span.end else None
        attended = F.scaled_dot_product_attention(
            query, keys.expand(shape), values.expand(shape), attn_mask=mask, scale=spec.scale
        )
        out[tokens].view(grouped).permute(1, 2, 0, 3).copy_(attended)


def _slots(metadata: AttentionMetadata, span: BidirectionalSpan) -> torch.Tensor:
    """int64 [end]"""

    def find() -> torch.Tensor:
        row = metadata.rows[span.entry : span.entry + 1]
        return metadata.req_to_token.index_select(0, row)[0, : span.end].long()

    return metadata.once(("slots", span), find)


def _inside_window(metadata: AttentionMetadata, span: BidirectionalSpan, window: int) -> torch.Tensor:
    """bool [tokens, end]"""

    def find() -> torch.Tensor:
        position = torch.arange(span.end, device=metadata.rows.device)
        return position[span.end - span.tokens :, None] - position < window

    return metadata.once(("inside window", span, window), find)
