"""Attention in torch: what a CPU computes with. Runs of slots are read in place, so dense keys and values gain nothing."""

from __future__ import annotations

import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.torch.attention import decode_attention, prefill_attention


class TorchAttention:
    graphs = False
    dense_prefill = False
    decode = staticmethod(decode_attention)

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        return True

    def prefill(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
        dense: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        prefill_attention(q, kv, metadata, spec, out)
