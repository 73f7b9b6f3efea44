"""Attention of a chunk of tokens over its context in bfloat16, keys and values read by slot number, products on the matrix unit
(AMX) or with the instruction that multiplies pairs (AVX512-BF16).

A task is some tokens of one chunk with all query heads of one KV head: its rows are [tokens, group]. It goes over the
context in blocks of BLOCK keys with a running maximum and sum for each row (FlashAttention-2: Dao 2023, arXiv 2307.08691). The
keys and values of a block are arranged once for all rows of the task. Blocks begin at multiples of BLOCK, whatever the chunk:
what is summed in which order depends on a token's position alone.

Scores, sums and softmax are float32; the weights are rounded to bfloat16 for the product with the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import prefill_attention as at
from lightllm.ops.cpu.calls.prefill_attention import BLOCK, TILE
from lightllm.ops.cpu.kernels import pairs, tiles
from lightllm.ops.cpu.kernels.decode_attention import LOWEST, change_scores
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    exp,
    floats,
    int32s,
    int64s,
    kernel,
    plain_nan,
    take_next,
    uint8s,
    uint16s,
    uint32s,
)
from lightllm.ops.cpu.kernels.numbers import BY_NAME
from lightllm.ops.cpu.kernels.vectors import highest, weights_of
from lightllm.ops.cpu_kind import CpuKind, chosen

_TILED = chosen() == CpuKind.AMX
product, add_product = (tiles.product, tiles.add_product) if _TILED else (pairs.product, pairs.add_product)
_HIDDEN = np.float32(-math.inf)
"""The score of a key that is not seen: its weight is 0. A row may begin with such keys alone, so its maximum begins at LOWEST."""
_store = BY_NAME["bfloat16"].store
_LOG2_E = np.float32(1 / math.log(2))


@kernel
def pack_queries(call, task, rows, wide, to):
    """bfloat16 [rows, wide], zeros beyond the task's own and beyond head_dim."""
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    q, out = uint16s(call[at.Q]), uint16s(to)
    count = task[3] * group
    for row in range(rows):
        first = (task[1] + row // group) * call[at.Q_STRIDE] + (task[4] * group + row % group) * head_dim
        for i in range(wide):
            out[row * wide + i] = 0
        if row < count:
            for i in range(head_dim):
                out[row * wide + i] = q[first + i]


@kernel
def pack_context(call, task, start, last, wide, keys, values):
    """One block: keys [wide / 2, BLOCK, 2] and values [BLOCK / 2, wide, 2], zeros where there are none."""
    slots = int32s(call[at.SLOTS] + 4 * task[0] * call[at.ROW_STRIDE])
    head_dim, stride = call[at.HEAD_DIM], call[at.SLOT_STRIDE]
    key, value = task[4] * head_dim, (call[at.KV_HEADS] + task[4]) * head_dim
    pairs, numbers = uint32s(call[at.KV]), uint16s(call[at.KV])
    to_keys, to_values = uint32s(keys), uint32s(values)
    half = head_dim // 2
    for i in range(half * BLOCK, wide // 2 * BLOCK):
        to_keys[i] = 0
    for j in range(BLOCK):
        if start + j <= last:
            first = (np.int64(slots[start + j]) * stride + key) // 2
            for i in range(half):
                to_keys[i * BLOCK + j] = pairs[first + i]
        else:
            for i in range(half):
                to_keys[i * BLOCK + j] = 0
    for j in range(0, BLOCK, 2):
        to = j // 2 * wide
        for i in range(wide):
            to_values[to + i] = 0
        if start + j < last:
            a = np.int64(slots[start + j]) * stride + value
            b = np.int64(slots[start + j + 1]) * stride + value
            for i in range(head_dim):
                to_values[to + i] = np.uint32(numbers[a + i]) | (np.uint32(numbers[b + i]) << np.uint32(16))
        elif start + j == last:
            a = np.int64(slots[start + j]) * stride + value
            for i in range(head_dim):
                to_values[to + i] = np.uint32(numbers[a + i])


@kernel
def scale_and_change(call, scores, at_row, columns, head, distance):
    """Scores that are more than scaled products, changed here; distance: from the query to the block's first key."""
    scale, softcap = floats(call[at.SCALE])[0], floats(call[at.SCALE])[1]
    for i in range(at_row, at_row + columns):
        scores[i] *= scale
    change_scores(scores, at_row, columns, softcap, call[at.ALIBI], head, distance)


@kernel
def weigh(scores, at_row, columns, scale, weights, state, state_row, out, out_row, wide):
    """A row's scores become weights in bfloat16, and what was summed before shrinks to the new maximum.

    state: maxima and sums of all rows, a pair each.
    """
    before = state[2 * state_row]
    above = max(before, highest(scores, at_row, columns) * scale)
    total = weights_of(scores, at_row, columns, scale * _LOG2_E, above * _LOG2_E, weights)
    if above > before:
        shrink = exp(before - above)
        state[2 * state_row] = above
        state[2 * state_row + 1] *= shrink
        for i in range(out_row, out_row + wide):
            out[i] *= shrink
    state[2 * state_row + 1] += total


@kernel
def hide(scores, at_row, columns, first, stop):
    """All but the keys first .. stop - 1 of a block."""
    for i in range(columns):
        if i < first or i >= stop:
            scores[at_row + i] = _HIDDEN


@kernel
def begin(state, out, rows, wide):
    for row in range(rows):
        state[2 * row], state[2 * row + 1] = LOWEST, np.float32(0)
    for i in range(rows * wide):
        out[i] = np.float32(0)


@kernel
def attend(call, task, scratch):
    group, head_dim, window = call[at.GROUP], call[at.HEAD_DIM], call[at.WINDOW]
    wide = (head_dim + TILE - 1) // TILE * TILE
    count, position = task[3] * group, task[2]
    rows = (count + TILE - 1) // TILE * TILE
    queries = scratch + 64
    keys = queries + 2 * call[at.MOST_ROWS] * wide
    values = keys + 2 * BLOCK * wide
    scores_at = values + 2 * BLOCK * wide
    weights_at = scores_at + 4 * TILE * BLOCK
    out_at = weights_at + 2 * TILE * BLOCK
    state = floats(out_at + 4 * call[at.MOST_ROWS] * wide)
    scores, weights, out = floats(scores_at), uint16s(weights_at), floats(out_at)
    plain = not call[at.ALIBI] and floats(call[at.SCALE])[1] <= 0
    scale = floats(call[at.SCALE])[0] if plain else np.float32(1)
    pack_queries(call, task, rows, wide, queries)
    begin(state, out, rows, wide)
    last = position + task[3] - 1
    first = max(position - window + 1, 0) if window else 0
    for start in range(first // BLOCK * BLOCK, last + 1, BLOCK):
        pack_context(call, task, start, last, wide, keys, values)
        for tile in range(0, rows, TILE):
            nearest = position + tile // group
            farthest = position + (min(tile + TILE, count) - 1) // group
            if start > farthest or (window and start + BLOCK - 1 <= nearest - window):
                continue
            columns = min(BLOCK, (farthest - start + TILE) // TILE * TILE)
            for i in range(0, columns, TILE):
                product(
                    queries + 2 * tile * wide,
                    2 * wide,
                    keys + 4 * i,
                    4 * BLOCK,
                    scores_at + 4 * i,
                    4 * BLOCK,
                    wide // TILE,
                )
            own, head = nearest, tile % group
            for row in range(tile, min(tile + TILE, count)):
                at_row = (row - tile) * BLOCK
                if not plain:
                    scale_and_change(call, scores, at_row, columns, task[4] * group + head, own - start)
                if own - start + 1 < columns or (window and own - window >= start):
                    hide(scores, at_row, columns, own - window + 1 - start if window else 0, own - start + 1)
                weigh(scores, at_row, columns, scale, weights, state, row, out, row * wide, wide)
                head += 1
                if head == group:
                    own, head = own + 1, 0
            for i in range(0, wide, TILE):
                add_product(
                    weights_at,
                    2 * BLOCK,
                    values + 4 * i,
                    4 * wide,
                    out_at + 4 * (tile * wide + i),
                    4 * wide,
                    columns // TILE,
                )
    finish(call, task, count, wide, state, out)


@kernel
def finish(call, task, count, wide, state, out):
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    result = uint16s(call[at.OUT])
    for row in range(count):
        head = task[4] * group + row % group
        highest_score, total = state[2 * row], state[2 * row + 1]
        shrink = np.float32(1)
        if call[at.SINKS]:
            sink = floats(call[at.SINKS])[head]
            above = max(highest_score, sink)
            shrink = exp(highest_score - above)
            total = total * shrink + exp(sink - above)
        factor = shrink / total
        to = ((task[1] + row // group) * call[at.KV_HEADS] * group + head) * head_dim
        for i in range(head_dim):
            _store(result, to + i, plain_nan(out[row * wide + i] * factor))


@kernel
def attend_all(call, scratch):
    counters = call[at.COUNTERS]
    while True:
        task = take_next(counters)
        if task >= call[at.NUM_TASKS]:
            return
        attend(call, int64s(call[at.TASKS] + 40 * task), scratch)


@kernel
def attend_with_tiles(call, scratch):
    tiles.read_configuration(scratch)
    tiles.configure(call[at.TILES])
    attend_all(call, scratch)
    if uint8s(scratch)[0]:
        tiles.configure(scratch)
    else:
        tiles.release()


def make() -> Any:
    attend_tasks = attend_with_tiles if _TILED else attend_all

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def prefill_attention(call):
        """What each thread runs: tasks until there are none left."""
        scratch = call[at.SCRATCH] + take_next(call[at.COUNTERS] + 8) * call[at.SCRATCH_BYTES]
        attend_tasks(call, scratch)

    return prefill_attention


def kernels() -> dict[str, Callable[[], Any]]:
    return {"prefill_attention_bfloat16": make} if chosen() >= CpuKind.AVX512_BF16 else {}
