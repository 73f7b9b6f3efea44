"""Attention in bfloat16 over keys and values of 8 bits with a kernel of our own: see `kernels/coded_attention.py`."""

from __future__ import annotations

import torch

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.cpu.block_attention import Batch, place_for, prefill_tasks, shape_of, side_by_side
from lightllm.ops.cpu.calls import coded_attention as at
from lightllm.ops.cpu.decode_tasks import decode_tasks
from lightllm.ops.cpu.library import Kernel


class CodedAttention:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def prefill(self, call: AttentionCall) -> bool:
        """Whether it was done."""
        if not _takes(call):
            return False
        metadata, window, shape = call.metadata, call.spec.window, shape_of(call)
        batch = metadata.once(
            ("codes, prefill", *shape, window),
            lambda: Batch(metadata, prefill_tasks(metadata, *shape[:2], window), shape, window, at),
        )
        out = call.out
        result = place_for(out)
        self._run(batch, call, side_by_side(call.q), result)
        if result is not out:
            first = int(metadata.q_start[metadata.num_decode])
            out[first:].copy_(result[first:])
        return True

    def decode(self, call: AttentionCall) -> bool:
        """call.metadata: `decode_by_token`."""
        if not _takes(call):
            return False
        metadata, window, shape = call.metadata, call.spec.window, shape_of(call)
        padded = (*shape[:2], at.padded(shape[2]))
        batch = metadata.once(
            ("codes, decode", *shape, window),
            lambda: Batch(metadata, decode_tasks(metadata, padded, window), shape, window, at),
        )
        count = metadata.num_decode
        out = call.out[:count]
        result = place_for(out)
        self._run(batch, call, side_by_side(call.q[:count]), result)
        if result is not out:
            out.copy_(result)
        return True

    def _run(self, batch: Batch, call: AttentionCall, q: torch.Tensor, out: torch.Tensor) -> None:
        self._kernel(batch.told(q, call.kv, call.spec, out))


def _takes(call: AttentionCall) -> bool:
    kv = call.kv
    of_heads = kv.scales is not None and kv.scales.shape[2] == 1 and kv.scales.stride(1) == 1
    return call.q.dtype == torch.bfloat16 and kv.data.dtype == torch.int8 and of_heads
