"""Attention in bfloat16 with a kernel of our own: see `kernels/block_attention.py`.

What it is told about a batch is worked out once a round; a layer adds where its memory lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.decode_tasks import TASKS_PER_THREAD, Tasks, decode_tasks, seen_pieces
from lightllm.ops.cpu.library import Kernel
from lightllm.ops.cpu.recording import OfRound, Places
from lightllm.ops.cpu_kind import CpuKind, chosen
from lightllm.ops.kv_layer import KvLayer

ELEMENTS = {torch.bfloat16: at.BFLOAT16, torch.float8_e4m3fn: at.E4M3, torch.uint8: at.INT4}
"""Of KV memory: what is read as it is, and codes that become numbers on the way."""
_MOST_ROWS, _FEWEST_ROWS = 256, 64
"""Of a prefill task: keys and values are arranged once for all of them, and what is summed up for them stays in the cache."""


_PLACES = Places(
    at.COUNTERS, at.SCALE,
    (at.Q, at.Q_STRIDE, at.OUT, at.KV, at.SLOT_STRIDE, at.ELEMENT, at.HEAD_BYTES, at.SCALES, at.SCALE_STRIDE, at.GROUPS, at.ALIBI,
     at.SINKS),
)  # fmt: skip
"""What `Batch.told` writes."""


class BlockAttention:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._tiled = kernel, chosen() == CpuKind.AMX

    def prefill(self, call: AttentionCall) -> bool:
        """Whether it was done: what is not of bfloat16 is another implementation's."""
        if not _takes(call):
            return False
        metadata, window, shape = call.metadata, call.spec.window, shape_of(call)
        batch = metadata.once(
            ("blocks, prefill", *shape, window),
            lambda: Batch(metadata, prefill_tasks(metadata, *shape[:2], window, self._tiled), shape, window),
        )
        out = call.out
        result = place_for(out)
        self._kernel(batch.told(side_by_side(call.q), call.kv, call.spec, result))
        if result is not out:
            first = int(metadata.q_start[metadata.num_decode])
            out[first:].copy_(result[first:])
        return True

    def decode(self, call: AttentionCall) -> bool:
        """call.metadata: `decode_by_token`."""
        if self._tiled or not _takes(call):
            return False
        metadata, window, shape = call.metadata, call.spec.window, shape_of(call)
        key = ("blocks, decode", *shape, window)

        def make(metadata: AttentionMetadata) -> Batch:
            return metadata.once(
                key, lambda: Batch(metadata, decode_tasks(metadata, shape, window), shape, window)
            )

        batch, count = make(metadata), metadata.num_decode
        q, out = side_by_side(call.q[:count]), call.out[:count]
        result = place_for(out)
        self._kernel(batch.told(q, call.kv, call.spec, result), OfRound(key, batch, make, _PLACES))
        if result is not out:
            out.copy_(result)
        return True


def _takes(call: AttentionCall) -> bool:
    return call.q.dtype == torch.bfloat16 and call.kv.data.dtype in ELEMENTS and call.q.shape[2] % 2 == 0


def shape_of(call: AttentionCall) -> tuple[int, int, int]:
    """KV heads, query heads of each, head_dim."""
    heads, head_dim = call.q.shape[1:]
    return call.kv.kv_heads, heads // call.kv.kv_heads, head_dim


def side_by_side(q: torch.Tensor) -> torch.Tensor:
    """Rows of any stride."""
    return q if q.stride()[1:] == (q.shape[2], 1) else q.contiguous()


def place_for(out: torch.Tensor) -> torch.Tensor:
    """Where a kernel writes what is for `out`: there, if it can."""
    if out.dtype == torch.bfloat16 and out.is_contiguous():
        return out
    return torch.empty_like(out, dtype=torch.bfloat16)


class Batch:
    """Tasks of a batch and memory for them, the same for all layers of one shape."""

    def __init__(
        self,
        metadata: AttentionMetadata,
        tasks: Tasks,
        shape: tuple[int, int, int],
        window: int,
        calls: Any = at,
    ) -> None:
        """shape: KV heads, query heads of each, head_dim; calls: the module that says what the kernel is told."""
        table, (kv_heads, group, head_dim), rows = metadata.req_to_token, shape, tasks.most_rows
        assert table.dtype == torch.int32 and table.stride(1) == 1
        most_heads, threads = int(tasks.table[:, at.HEADS].max()), torch.get_num_threads()
        size = -(-calls.scratch_bytes(kv_heads, most_heads, rows, head_dim) // 64) * 64
        self._tasks, self.scale = tasks, np.zeros(2, np.float32)
        self.counters = np.zeros(2 + tasks.counters, np.int64)
        self._scratch = np.empty(threads * size + 64, np.uint8)
        state_size = calls.state_size(most_heads, rows, head_dim)
        self._states = np.empty(tasks.states, np.float32)
        self._tiles = np.zeros(64, np.uint8)
        self._tiles[0] = 1  # the palette; 8 tiles of 16 rows of 64 bytes
        self._tiles[16:32:2], self._tiles[48:56] = 64, 16
        call = self.call = np.zeros(calls.LENGTH, np.int64)
        self._address = call.ctypes.data
        call[at.SLOTS], call[at.ROW_STRIDE] = table.data_ptr(), table.stride(0)
        call[at.TASKS], call[at.NUM_TASKS] = tasks.table.ctypes.data, len(tasks.table)
        call[at.COUNTERS], call[at.SCALE] = self.counters.ctypes.data, self.scale.ctypes.data
        call[at.SCRATCH], call[at.SCRATCH_BYTES] = -(-self._scratch.ctypes.data // 64) * 64, size
        call[at.STATES], call[at.STATE_SIZE] = self._states.ctypes.data, state_size
        call[at.TILES], call[at.MOST_HEADS], call[at.MOST_ROWS] = self._tiles.ctypes.data, most_heads, rows
        call[at.KV_HEADS], call[at.GROUP], call[at.HEAD_DIM] = kv_heads, group, head_dim
        call[at.WINDOW] = window

    def told(self, q: torch.Tensor, kv: KvLayer, spec: AttentionSpec, out: torch.Tensor) -> int:
        """Where it lies; holds until the next layer is told."""
        assert kv.data.stride()[1:] == (kv.data.shape[2], 1)
        call = self.call
        self.counters.fill(0)
        self.scale[:] = spec.scale, spec.softcap
        call[at.Q], call[at.Q_STRIDE], call[at.OUT] = q.data_ptr(), q.stride(0), out.data_ptr()
        size = kv.data.itemsize
        call[at.KV], call[at.SLOT_STRIDE] = kv.data.data_ptr(), kv.data.stride(0) * size
        call[at.ELEMENT], call[at.HEAD_BYTES] = ELEMENTS.get(kv.data.dtype, 0), kv.data.shape[2] * size
        if kv.scales is not None:
            assert kv.scales.stride()[1:] == (kv.scales.shape[2], 1)
            call[at.SCALES], call[at.SCALE_STRIDE] = kv.scales.data_ptr(), kv.scales.stride(0)
            call[at.GROUPS] = kv.scales.shape[2]
        call[at.ALIBI], call[at.SINKS] = address_of(spec.alibi_slopes), address_of(spec.sinks)
        return self._address


def address_of(numbers: torch.Tensor | None) -> int:
    """As a kernel is told it; 0: none."""
    assert numbers is None or numbers.dtype == torch.float32 and numbers.is_contiguous()
    return 0 if numbers is None else numbers.data_ptr()


def prefill_tasks(
    metadata: AttentionMetadata, kv_heads: int, group: int, window: int, tiled: bool = False
) -> Tasks:
    """A task for each KV head and some tokens of a chunk. Those of the longest contexts of a chunk first."""
    rows, q_lens = _MOST_ROWS, np.diff(metadata.q_start[metadata.num_decode :].numpy())
    wanted = TASKS_PER_THREAD * torch.get_num_threads()
    while rows > _FEWEST_ROWS and kv_heads * (-(-q_lens // max(1, rows // group))).sum() < wanted:
        rows //= 2
    tokens, decoded = max(1, rows // group), metadata.num_decode
    table_rows, starts = metadata.rows[decoded:].tolist(), metadata.q_start[decoded:].tolist()
    places = [
        (row, begin + done, kv_len - (end - begin) + done, min(tokens, end - begin - done), head)
        for row, begin, end, kv_len in zip(table_rows, starts, starts[1:], metadata.kv_len[decoded:].tolist())
        for done in reversed(range(0, end - begin, tokens))
        for head in range(kv_heads)
    ]
    tasks = np.zeros((len(places), at.TASK_LENGTH), np.int64)
    tasks[:, [at.TABLE_ROW, at.TOKEN, at.POSITION, at.TOKENS, at.KV_HEAD]] = places
    tasks[:, at.HEADS] = 1
    first = tasks[:, at.POSITION]
    tasks[:, at.FIRST_PIECE], tasks[:, at.END_PIECE] = seen_pieces(
        first, first + tasks[:, at.TOKENS] - 1, window
    )
    most = int(tasks[:, at.TOKENS].max()) * group
    return Tasks(tasks, at.padded(most) if tiled else most)
