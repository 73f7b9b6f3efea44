"""The project's own kernels: every spec, by slots or dense."""

from __future__ import annotations

from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.decode_attention import decode_attention
from lightllm.ops.triton.prefill_attention import prefill_attention


class TritonAttention:
    graphs = True
    dense_prefill = True
    decode = staticmethod(decode_attention)
    prefill = staticmethod(prefill_attention)

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        return True
