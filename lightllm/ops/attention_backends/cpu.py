"""Attention on a CPU with kernels of our own (`ops/cpu/`): decoding, and prefill in bfloat16 where the processor has instructions for it.

What the kernel is told about a batch is worked out once a round; a layer adds where its memory lies.
"""

from __future__ import annotations

import numpy as np
import torch

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_backends.torch import TorchAttention
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.cpu.block_attention import BlockAttention, address_of
from lightllm.ops.cpu.calls import decode_attention as at
from lightllm.ops.cpu.coded_attention import CodedAttention
from lightllm.ops.cpu.library import Kernel
from lightllm.ops.kv_layer import KvLayer


class CpuAttention:
    graphs = False
    dense_prefill = False

    def __init__(self, kernels: dict[str, Kernel]) -> None:
        dtypes = (torch.bfloat16, torch.float16, torch.float32)
        self._kernels = {
            dtype: kernels[f"decode_attention_{str(dtype).removeprefix('torch.')}"] for dtype in dtypes
        }
        block_kernel = kernels.get("block_attention_bfloat16")
        self._blocks = None if block_kernel is None else BlockAttention(block_kernel)
        coded_kernel = kernels.get("coded_attention_bfloat16")
        self._coded = None if coded_kernel is None else CodedAttention(coded_kernel)

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        if spec.sparsity is not None:
            return False
        return kv.data.dtype in self._kernels if kv.scales is None else self._coded is not None

    def decode(self, call: AttentionCall) -> None:
        metadata, kv, spec = call.metadata.decode_by_token(), call.kv, call.spec
        if kv.scales is not None:
            own = self._of_codes(kv)
            if own is None or not own.decode(call._replace(metadata=metadata)):
                TorchAttention.decode(call)
            return
        if self._blocks is not None and self._blocks.decode(call._replace(metadata=metadata)):
            return
        count, heads, head_dim = metadata.num_decode, *call.q.shape[1:]
        key = ("cpu decode", heads, kv.kv_heads, head_dim, spec.window)
        batch = metadata.once(key, lambda: _Batch(metadata, heads, kv.kv_heads, head_dim, spec.window))
        q, out = call.q[:count].to(kv.data.dtype).contiguous(), call.out[:count]
        result = out if out.dtype == q.dtype and out.is_contiguous() else torch.empty_like(q)
        self._kernels[q.dtype](batch.told(q, kv, spec, result))
        if result is not out:
            out.copy_(result)

    def prefill(self, call: AttentionCall) -> None:
        """torch's, where there is no kernel: its own matrix products are as fast as other processors allow."""
        own = self._blocks if call.kv.scales is None else self._of_codes(call.kv)
        if own is None or not own.prefill(call):
            TorchAttention.prefill(call)

    def _of_codes(self, kv: KvLayer) -> CodedAttention | BlockAttention | None:
        """int8 is multiplied as it is; other codes become numbers of bfloat16, a block at a time."""
        return self._coded if kv.data.dtype == torch.int8 else self._blocks


class _Batch:
    """Tasks of a batch and memory for them, the same for all layers of one shape."""

    def __init__(
        self, metadata: AttentionMetadata, heads: int, kv_heads: int, head_dim: int, window: int
    ) -> None:
        count, table = metadata.num_decode, metadata.req_to_token
        assert table.dtype == torch.int32 and table.stride(1) == 1
        self._rows = metadata.rows[:count].long().contiguous()
        self._kv_lens = metadata.kv_len[:count].int().contiguous()
        self._tasks = tasks = _tasks(self._kv_lens.numpy(), window)
        self._counters, self._scale = np.zeros(2 + count, np.int64), np.zeros(2, np.float32)
        self._scratch = torch.empty(torch.get_num_threads() * heads * (at.BLOCK + head_dim))
        self._states = torch.empty(len(tasks) * heads * (2 + head_dim))
        call = self._call = np.zeros(at.LENGTH, np.int64)
        self._address = call.ctypes.data
        call[at.SLOTS], call[at.ROW_STRIDE] = table.data_ptr(), table.stride(0)
        call[at.ROWS], call[at.KV_LENS] = self._rows.data_ptr(), self._kv_lens.data_ptr()
        call[at.TASKS], call[at.NUM_TASKS] = tasks.ctypes.data, len(tasks)
        call[at.COUNTERS], call[at.SCALE] = self._counters.ctypes.data, self._scale.ctypes.data
        call[at.SCRATCH], call[at.STATES] = self._scratch.data_ptr(), self._states.data_ptr()
        call[at.KV_HEADS], call[at.GROUP], call[at.HEAD_DIM] = kv_heads, heads // kv_heads, head_dim

    def told(self, q: torch.Tensor, kv: KvLayer, spec: AttentionSpec, out: torch.Tensor) -> int:
        """Where it lies; holds until the next layer is told."""
        assert kv.data.stride()[1:] == (kv.data.shape[2], 1)
        call = self._call
        self._counters.fill(0)
        self._scale[:] = spec.scale, spec.softcap
        call[at.Q], call[at.OUT] = q.data_ptr(), out.data_ptr()
        call[at.KV], call[at.SLOT_STRIDE] = kv.data.data_ptr(), kv.data.stride(0)
        call[at.ALIBI], call[at.SINKS] = address_of(spec.alibi_slopes), address_of(spec.sinks)
        return self._address


def _tasks(kv_lens: np.ndarray, window: int) -> np.ndarray:
    """int32 [tasks, 4]; see `calls.decode_attention`."""
    firsts = np.maximum(kv_lens - window, 0) if window else np.zeros_like(kv_lens)
    pieces = -(-(kv_lens - firsts) // at.SPLIT)
    entries = np.repeat(np.arange(len(kv_lens)), pieces)
    numbers = np.arange(len(entries)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    columns = (entries, firsts[entries] + numbers * at.SPLIT, numbers, pieces[entries])
    return np.ascontiguousarray(np.stack(columns, 1), dtype=np.int32)
