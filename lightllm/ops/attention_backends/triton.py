"""The project's own kernels: every spec, by slots or dense."""

from __future__ import annotations

import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.decode_attention import decode_attention
from lightllm.ops.triton.prefill_attention import prefill_attention


class TritonAttention:
    graphs = True
    dense_prefill = True

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        return True

    def decode(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None:
        decode_attention(q, kv, metadata, spec, out)

    def prefill(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
        dense: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        prefill_attention(q, kv, metadata, spec, out, dense)
