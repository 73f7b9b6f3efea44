"""Attention of tokens over their contexts in bfloat16, keys and values read by slot number, for chunks of prompts and for one
token at a time: a token has the same bits in both.

A task is some tokens of one chunk with all query heads of some KV heads: each head's rows are [tokens, group]. It goes over
the context in blocks of BLOCK keys with a running maximum and sum for each row (FlashAttention-2: Dao 2023, arXiv
2307.08691). The keys and values of a block are arranged once for all rows of the task. PIECE keys are summed up by
themselves, then added to the pieces before; of one token they may be tasks of several threads, and whoever is the last
adds them up. Blocks and pieces begin at multiples of their length, whatever the chunk: what is summed in which order depends
on a token's position alone. So that the compiler makes the same code of it, everything is computed in one place for all.

Products are the matrix unit's (AMX), or of the instruction that multiplies pairs (AVX512-BF16). Scores, sums and softmax are
float32; the weights are rounded to bfloat16 for the product with the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.calls.block_attention import BLOCK, PIECE, TILE
from lightllm.ops.cpu.kernels import pairs, tiles
from lightllm.ops.cpu.kernels.decode_attention import LOWEST, change_scores
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    address_of,
    exp,
    floats,
    int32s,
    int64s,
    kernel,
    plain_nan,
    take_next,
    uint8s,
    uint16s,
)
from lightllm.ops.cpu.kernels.numbers import BY_NAME
from lightllm.ops.cpu.kernels.vectors import highest, weights_of
from lightllm.ops.cpu_kind import CpuKind, chosen

_TILED = chosen() == CpuKind.AMX
_HIDDEN = np.float32(-math.inf)
"""The score of a key that is not seen: its weight is 0. A row may begin with such keys alone, so its maximum begins at LOWEST."""
_store = BY_NAME["bfloat16"].store
_LOG2_E = np.float32(1 / math.log(2))
_LANES = pairs.LANES

product4, add_product4, add_product2 = (
    pairs.make_product(4, add=False), pairs.make_product(4, add=True), pairs.make_product(2, add=True)
)  # fmt: skip


@kernel
def score_rows(rows, queries, wide, keys, scores):
    """scores [rows, BLOCK] = queries [rows, wide] keys [wide / 2, BLOCK, 2]"""
    product4(rows, queries, 2 * wide, keys, 4 * BLOCK, wide // 2, scores, 4 * BLOCK, 0)


@kernel
def add_values(rows, weights, count, values, wide, out):
    """out [rows, wide] += weights [rows, the first `count` of BLOCK] values [BLOCK / 2, wide, 2]"""
    i = 0
    while i + 64 <= wide:
        add_product4(rows, weights, 2 * BLOCK, values + 4 * i, 4 * wide, count // 2, out + 4 * i, 4 * wide, 0)
        i += 64
    if i < wide:
        add_product2(rows, weights, 2 * BLOCK, values + 4 * i, 4 * wide, count // 2, out + 4 * i, 4 * wide, 0)


@kernel
def score_rows_with_tiles(rows, queries, wide, keys, scores):
    for row in range(0, rows, TILE):
        for i in range(0, BLOCK, TILE):
            tiles.product(
                queries + 2 * row * wide, 2 * wide, keys + 4 * i, 4 * BLOCK, scores + 4 * (row * BLOCK + i), 4 * BLOCK,
                wide // TILE,
            )  # fmt: skip


@kernel
def add_values_with_tiles(rows, weights, count, values, wide, out):
    for row in range(0, rows, TILE):
        for i in range(0, wide, TILE):
            tiles.add_product(
                weights + 2 * row * BLOCK, 2 * BLOCK, values + 4 * i, 4 * wide, out + 4 * (row * wide + i), 4 * wide,
                count // TILE,
            )  # fmt: skip


if _TILED:
    score_rows, add_values = score_rows_with_tiles, add_values_with_tiles


@kernel
def pack_queries(call, task, kv_head, rows, wide, to):
    """bfloat16 [rows, wide], zeros beyond the task's own and beyond head_dim."""
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    q, out = uint16s(call[at.Q]), uint16s(to)
    count = task[at.TOKENS] * group
    for row in range(rows):
        first = (task[at.TOKEN] + row // group) * call[at.Q_STRIDE] + (
            kv_head * group + row % group
        ) * head_dim
        for i in range(wide):
            out[row * wide + i] = 0
        if row < count:
            for i in range(head_dim):
                out[row * wide + i] = q[first + i]


@kernel
def pack_keys(call, lines, heads, count, kv_head, soon, soon_head, wide, to):
    """[wide / 2, BLOCK, 2] of a block of `count` keys. lines: address of each slot, or of zeros for all that is read there; heads: room
    for as many addresses. What is packed next, of the slots `soon`, is fetched meanwhile."""
    head_dim = call[at.HEAD_DIM]
    key, soon_key = 2 * kv_head * head_dim, 2 * soon_head * head_dim
    if head_dim == wide:
        for j in range(count):
            heads[j] = lines[j] + key
        for j in range(0, count, _LANES):
            own = int64s(address_of(heads) + 8 * j)
            for i in range(0, wide // 2, _LANES):
                pairs.transpose_pairs(own, 4 * i, to + 4 * (i * BLOCK + j), 4 * BLOCK)
                for k in range(j, j + _LANES):
                    pairs.fetch_ahead(soon[k] + soon_key + 4 * i)
    else:
        keys = uint16s(to)
        for j in range(count):
            k = uint16s(lines[j] + key)
            for i in range(wide):
                keys[(i // 2 * BLOCK + j) * 2 + i % 2] = k[i] if i < head_dim else 0


@kernel
def pack_values(call, lines, count, kv_head, soon, soon_head, wide, to):
    """[count / 2, wide, 2] in the order of `paired_place`, likewise."""
    head_dim = call[at.HEAD_DIM]
    value = 2 * (call[at.KV_HEADS] + kv_head) * head_dim
    soon_value = 2 * (call[at.KV_HEADS] + soon_head) * head_dim
    if head_dim == wide:
        for j in range(0, count, 2):
            a, b = lines[j] + value, lines[j + 1] + value
            c, d = soon[j] + soon_value, soon[j + 1] + soon_value
            for i in range(0, wide, 2 * _LANES):
                pairs.pair_up(a + 2 * i, b + 2 * i, to + 4 * (j // 2 * wide + i))
                pairs.fetch_ahead(c + 2 * i)
                pairs.fetch_ahead(d + 2 * i)
    else:
        values = uint16s(to)
        for j in range(count):
            v = uint16s(lines[j] + value)
            for i in range(wide):
                values[(j // 2 * wide + pairs.paired_place(i)) * 2 + j % 2] = v[i] if i < head_dim else 0


@kernel
def find_lines(call, task, start, last, zeros, lines):
    """Addresses of the slots of a block's keys, of zeros for those behind the last."""
    slots = int32s(call[at.SLOTS] + 4 * task[at.TABLE_ROW] * call[at.ROW_STRIDE])
    for j in range(BLOCK):
        seen = start + j <= last
        lines[j] = call[at.KV] + 2 * np.int64(slots[start + j]) * call[at.SLOT_STRIDE] if seen else zeros


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
def begin(state, rows, wide):
    """state: pairs of the rows, then what is summed up for them."""
    for row in range(rows):
        state[2 * row], state[2 * row + 1] = LOWEST, np.float32(0)
    for i in range(2 * rows, (2 + wide) * rows):
        state[i] = np.float32(0)


@kernel
def attend_block(
    call, task, start, count, kv_head, rows, first_row, all_rows, lines, soon, soon_head, queries, keys, values, work, state
):  # fmt: skip
    """One block of one KV head, for the rows from `first_row` on of a state of `all_rows`. work: scores, then weights, of TILE
    rows. values: as `keys` are, if they are not packed yet but to be written in their place, when they have been read."""
    group, window, wide = call[at.GROUP], call[at.WINDOW], at_wide(call)
    weights_at = work + 4 * TILE * BLOCK
    scores, weights = floats(work), uint16s(weights_at)
    plain = not call[at.ALIBI] and floats(call[at.SCALE])[1] <= 0
    scale = floats(call[at.SCALE])[0] if plain else np.float32(1)
    state_at, sums = floats(state), state + 8 * all_rows
    out = floats(sums)
    used, position = task[at.TOKENS] * group, task[at.POSITION]
    for tile in range(0, rows, TILE):
        nearest = position + tile // group
        farthest = position + (min(tile + TILE, used) - 1) // group
        if start > farthest or (window and start + BLOCK - 1 <= nearest - window):
            continue
        some = min(TILE, rows - tile)
        columns = min(BLOCK, (farthest - start + TILE) // TILE * TILE)
        score_rows(some, queries + 2 * tile * wide, wide, keys, work)
        own, head = nearest, tile % group
        for row in range(tile, min(tile + TILE, used)):
            at_row = (row - tile) * BLOCK
            if not plain:
                scale_and_change(call, scores, at_row, columns, kv_head * group + head, own - start)
            if own - start + 1 < columns or (window and own - window >= start):
                hide(scores, at_row, columns, own - window + 1 - start if window else 0, own - start + 1)
            to = first_row + row
            weigh(scores, at_row, columns, scale, weights, state_at, to, out, to * wide, wide)
            head += 1
            if head == group:
                own, head = own + 1, 0
        if values == keys:
            pack_values(call, lines, count, kv_head, soon, soon_head, wide, values)
        add_values(some, weights_at, columns, values, wide, sums + 4 * (first_row + tile) * wide)


@kernel
def at_wide(call):
    return (call[at.HEAD_DIM] + TILE - 1) // TILE * TILE


@kernel
def zeros_bytes(call):
    """A slot of zeros."""
    return (4 * call[at.KV_HEADS] * call[at.HEAD_DIM] + 63) // 64 * 64


@kernel
def attend_piece(call, task, piece, rows, lines, queries, work, state):
    """A piece of the context for all heads of the task. rows: of a head."""
    wide, heads = at_wide(call), task[at.HEADS]
    zeros = lines + 24 * BLOCK
    keys = work + 6 * TILE * BLOCK
    values = keys  # of few rows: half the memory, which stays in the first cache
    if rows > TILE:
        values += 2 * BLOCK * wide
    begin(floats(state), heads * rows, wide)
    last = task[at.POSITION] + task[at.TOKENS] - 1
    first = max(task[at.POSITION] - call[at.WINDOW] + 1, 0) if call[at.WINDOW] else 0
    begin_at = max(piece * PIECE, first // BLOCK * BLOCK)
    now, ahead, own = int64s(lines), int64s(lines + 8 * BLOCK), int64s(lines + 16 * BLOCK)
    find_lines(call, task, begin_at, last, zeros, ahead)
    for start in range(begin_at, min((piece + 1) * PIECE, last + 1), BLOCK):
        for j in range(BLOCK):
            now[j] = ahead[j]
        find_lines(call, task, start + BLOCK, last, zeros, ahead)
        count = min(BLOCK, (last - start + TILE) // TILE * TILE)
        for head in range(heads):
            kv_head = task[at.KV_HEAD] + head
            soon, soon_head = ahead, task[at.KV_HEAD]
            if head + 1 < heads:
                soon, soon_head = now, kv_head + 1
            pack_keys(call, now, own, count, kv_head, soon, soon_head, wide, keys)
            if values != keys:
                pack_values(call, now, count, kv_head, soon, soon_head, wide, values)
            attend_block(
                call, task, start, count, kv_head, rows, head * rows, heads * rows, now, soon, soon_head,
                queries + 2 * head * rows * wide, keys, values, work, state,
            )  # fmt: skip


@kernel
def add_piece(state, total, rows, wide):
    for row in range(rows):
        before, more = total[2 * row], state[2 * row]
        above = max(before, more)
        shrink, share = exp(before - above), exp(more - above)
        total[2 * row] = above
        total[2 * row + 1] = total[2 * row + 1] * shrink + state[2 * row + 1] * share
        for i in range(2 * rows + row * wide, 2 * rows + (row + 1) * wide):
            total[i] = total[i] * shrink + state[i] * share


@kernel
def attend(call, task, scratch):
    wide, heads = at_wide(call), task[at.HEADS]
    rows = task[at.TOKENS] * call[at.GROUP]
    if _TILED:
        rows = (rows + TILE - 1) // TILE * TILE
    lines = scratch + 64
    queries = lines + 24 * BLOCK + zeros_bytes(call)
    work = queries + 2 * call[at.MOST_HEADS] * call[at.MOST_ROWS] * wide
    size = 4 * call[at.STATE_SIZE]
    total = work + 6 * TILE * BLOCK + 4 * BLOCK * wide
    zeros = int64s(lines + 24 * BLOCK)
    for i in range(zeros_bytes(call) // 8):
        zeros[i] = 0
    for head in range(heads):
        pack_queries(call, task, task[at.KV_HEAD] + head, rows, wide, queries + 2 * head * rows * wide)
    begin(floats(total), heads * rows, wide)
    shares, shared = task[at.SHARES], call[at.STATES] + size * task[at.STATE]
    begun, pieces = 0, task[at.END_PIECE] - task[at.FIRST_PIECE]
    for number in range(pieces):
        piece = task[at.FIRST_PIECE] + number
        state = total + size
        if shares > 1:
            state = shared + size * task[at.SHARE]
        attend_piece(call, task, piece, rows, lines, queries, work, state)
        first, end = state, state + size
        if shares > 1:
            done = take_next(call[at.COUNTERS] + 8 * task[at.COUNTER]) == shares - 1
            first, end = shared, shared + (size * shares if done else 0)
        for one in range(first, end, size):
            add_piece(floats(one), floats(total), heads * rows, wide)
            begun += 1
    if begun >= shares and begun >= pieces:
        for head in range(heads):
            finish(call, task, task[at.KV_HEAD] + head, head * rows, heads * rows, wide, floats(total))


@kernel
def finish(call, task, kv_head, first_row, all_rows, wide, total):
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    result = uint16s(call[at.OUT])
    for row in range(task[at.TOKENS] * group):
        head = kv_head * group + row % group
        highest_score, count = total[2 * (first_row + row)], total[2 * (first_row + row) + 1]
        shrink = np.float32(1)
        if call[at.SINKS]:
            sink = floats(call[at.SINKS])[head]
            above = max(highest_score, sink)
            shrink = exp(highest_score - above)
            count = count * shrink + exp(sink - above)
        factor = shrink / count
        to = ((task[at.TOKEN] + row // group) * call[at.KV_HEADS] * group + head) * head_dim
        own = 2 * all_rows + (first_row + row) * wide
        for i in range(head_dim):
            _store(result, to + i, plain_nan(total[own + pairs.paired_place(i)] * factor))


@kernel
def attend_all(call, scratch):
    counters = call[at.COUNTERS]
    while True:
        task = take_next(counters)
        if task >= call[at.NUM_TASKS]:
            return
        attend(call, int64s(call[at.TASKS] + 8 * at.TASK_LENGTH * task), scratch)


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
    def block_attention(call):
        """What each thread runs: tasks until there are none left."""
        scratch = call[at.SCRATCH] + take_next(call[at.COUNTERS] + 8) * call[at.SCRATCH_BYTES]
        attend_tasks(call, scratch)

    return block_attention


def kernels() -> dict[str, Callable[[], Any]]:
    return {"block_attention_bfloat16": make} if chosen() >= CpuKind.AVX512_BF16 else {}
