"""Self-attention as all architectures here have it; what differs is given to it as a part."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.layers.norm import RMSNorm
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.batch import Batch, Wanted
from lightllm.ops.linear import PackedLinear
from lightllm.ops.rotary import rotary_and_write_kv
from lightllm.ops.write_kv import write_kv


class Attention:
    """o(attention(rotate(norm(q)), rotate(norm(k)), v)) with [q, k, v] = qkv(x), over KV memory by slots."""

    def __init__(
        self,
        config: ModelConfig,
        build: Builder,
        layer: int,
        qkv_proj: PackedLinear | None = None,
        o_proj: str = "o_proj",
        *,
        qk_norm: Callable[[torch.Tensor], torch.Tensor] | None = None,
        rope: int = 0,
        spec: AttentionSpec | None = None,
        query_scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """qkv_proj: from Llama's q_proj, k_proj and v_proj if it is not given; o_proj: its name; qk_norm: of queries and keys
        [T, heads + kv_heads, head_dim] before the rotation; rope: which of `config.ropes`, if there are any; spec: of the
        scores, if the config does not say it all; query_scale: from positions [T] to what each token's queries are
        multiplied with [T]."""
        self.layer, self.head_dim, self.backends = layer, config.head_dim, build.attention_backends
        self.qk_heads = config.num_heads + config.num_kv_heads
        self.num_heads = config.num_heads
        self.qkv_proj = qkv_proj or build.qkv_linear("q_proj", "k_proj", "v_proj")
        self.o_proj = build.o_linear(o_proj)
        self.query_scale = query_scale
        self.rope = rope if config.ropes else None
        # An RMSNorm of each head is part of the rotation's kernel.
        fused = isinstance(qk_norm, RMSNorm) and self.rope is not None
        self.head_norm = (qk_norm.weight, qk_norm.eps) if fused else (None, 0.0)  # type: ignore[union-attr]
        self.qk_norm = None if fused else qk_norm
        self.interleaved = bool(config.ropes) and config.ropes[rope].interleaved
        self.spec = spec or AttentionSpec(
            config.attention_scale, window=config.window(layer), softcap=config.attention_softcap
        )

    def forward(self, x: torch.Tensor, batch: Batch, wanted: Wanted | None = None) -> torch.Tensor:
        """x: [T, hidden]. Returns [T, hidden], added up over all ranks; with `wanted` [K, hidden], of these tokens."""
        out = self.attended(self.qkv_proj(x), batch, wanted)
        return self.o_proj(out) if wanted is None or len(wanted.tokens) else x[:0]

    def attended(self, qkv: torch.Tensor, batch: Batch, wanted: Wanted | None = None) -> torch.Tensor:
        """qkv: what `qkv_proj` gives, [T, all heads * head_dim]. Writes keys and values; returns what `o_proj` takes, of the
        wanted tokens."""
        qkv = qkv.view(len(qkv), -1, self.head_dim)
        qk, v = qkv[:, : self.qk_heads], qkv[:, self.qk_heads :]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        kv = batch.kv[self.layer]
        dense = self.backends.reads_dense(batch.attention, self.spec, kv, qkv.dtype)
        if self.rope is None:
            q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
            write_kv(k, v, kv, batch.slots)
        else:
            cos, sin = batch.rotary[self.rope]
            weight, eps = self.head_norm
            q = rotary_and_write_kv(qk, v, cos, sin, kv, batch.slots, self.interleaved, weight, eps, dense)
            if dense:
                q, k = q[:, : self.num_heads], q[:, self.num_heads :]
        if self.query_scale is not None:
            q = q * self.query_scale(batch.positions).to(q.dtype)[:, None, None]
        own = (k, v) if dense else None
        if wanted is None:
            return self.backends.attend(q, kv, batch.attention, self.spec, own)
        if not len(wanted.tokens):
            return q[:0].flatten(1)
        q = q.index_select(0, wanted.tokens)
        return self.backends.attend(q, kv, wanted.attention, self.spec)
