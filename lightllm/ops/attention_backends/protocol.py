"""What an attention backend does, and the pair of them that a model computes with."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer


class AttentionBackend(Protocol):
    """q, out: [T, heads, head_dim], the tokens of decode entries first; query head h reads KV head h // (heads / kv_heads).
    Scores and softmax are float32. The keys and values of the new tokens are already in `kv`."""

    graphs: bool
    """Decoding can be captured: nothing is asked of the device on the way."""
    dense_prefill: bool
    """Prefill reads the new tokens' keys and values from `dense` where no chunk has a cached prefix."""

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        """Whether it computes such scores over such KV memory."""

    def decode(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None:
        """out[t] = softmax(score(q[t], K)) V for every token t of the decode entries; the score is the `spec`'s.

        Token j of an entry (from 0) has position kv_len - q_len + j and sees the positions up to it, or the last `window`
        of them.
        """

    def prefill(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
        dense: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """As `decode`, for the tokens of the prefill entries. dense: the rotated keys and the values of the batch's own
        tokens, each [T, kv_heads, head_dim]."""


@dataclasses.dataclass(frozen=True)
class AttentionBackends:
    prefill: AttentionBackend
    decode: AttentionBackend
    general: AttentionBackend
    """Takes everything: computes what the others do not take."""

    def prefill_for(self, spec: AttentionSpec, kv: KvLayer) -> AttentionBackend:
        return self.prefill if self.prefill.takes(spec, kv) else self.general

    def decode_for(self, spec: AttentionSpec, kv: KvLayer) -> AttentionBackend:
        return self.decode if self.decode.takes(spec, kv) else self.general

    def reads_dense(
        self, metadata: AttentionMetadata, spec: AttentionSpec, kv: KvLayer, dtype: torch.dtype
    ) -> bool:
        """Whether prefill reads keys and values of this dtype where a layer hands them over, not by slot. Only KV memory
        that holds the same numbers gives the same result both ways."""
        return (
            metadata.no_prefix
            and metadata.num_prefill > 0
            and kv.holds(dtype)
            and self.prefill_for(spec, kv).dense_prefill
        )
