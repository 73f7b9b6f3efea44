"""What an attention backend does, and the pair of them that a model computes with."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import torch

from lightllm.ops.attention_backends.bidirectional import attend_bidirectionally
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer


class AttentionCall(NamedTuple):
    """One layer's attention over a batch of T tokens, those of decode entries first."""

    q: torch.Tensor
    """[T, heads, head_dim]; query head h reads KV head h // (heads / kv_heads)."""
    kv: KvLayer
    """The keys and values of the new tokens are already in it."""
    metadata: AttentionMetadata
    spec: AttentionSpec
    out: torch.Tensor
    """[T, heads, head_dim], written by the backend."""
    dense: tuple[torch.Tensor, torch.Tensor] | None = None
    """The rotated keys and the values of the batch's own tokens, each [T, kv_heads, head_dim]."""


class AttentionBackend(Protocol):
    """Scores and softmax are float32."""

    graphs: bool
    """Decoding can be captured: nothing is asked of the device on the way."""
    dense_prefill: bool
    """Prefill reads the new tokens' keys and values from `dense` where no chunk has a cached prefix."""

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        """Whether it computes such scores over such KV memory."""

    def decode(self, call: AttentionCall) -> None:
        """out[t] = softmax(score(q[t], K)) V for every token t of the decode entries; the score is the `spec`'s.

        Token j of an entry (from 0) has position kv_len - q_len + j and sees the positions up to it, or the last `window`
        of them.
        """

    def prefill(self, call: AttentionCall) -> None:
        """As `decode`, for the tokens of the prefill entries."""


@dataclasses.dataclass(frozen=True)
class AttentionBackends:
    prefill: AttentionBackend
    decode: AttentionBackend
    general: AttentionBackend
    """Takes everything: computes what the others do not take."""

    def attend(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        dense: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Every token of a batch over its context, decode entries and prefill chunks side by side; see `AttentionCall`.
        Returns [T, heads * head_dim]."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        call = AttentionCall(q, kv, metadata, spec, out, dense)
        if metadata.num_decode:
            self.decode_for(spec, kv).decode(call)
        if metadata.num_prefill:
            self.prefill_for(spec, kv).prefill(call)
        if metadata.bidirectional:
            attend_bidirectionally(q, kv, metadata, spec, out)
        return out.view(q.shape[0], -1)

    def decode_for(self, spec: AttentionSpec, kv: KvLayer) -> AttentionBackend:
        return self.decode if self.decode.takes(spec, kv) else self.general

    def prefill_for(self, spec: AttentionSpec, kv: KvLayer) -> AttentionBackend:
        return self.prefill if self.prefill.takes(spec, kv) else self.general

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
