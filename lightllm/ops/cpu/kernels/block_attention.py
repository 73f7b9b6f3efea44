"""Attention of tokens over their contexts in bfloat16, keys and values read by slot number, for chunks of prompts and for one
token at a time: a token has the same bits in both.

A task is some tokens of one chunk with all query heads of some KV heads: each head's rows are [tokens, group]. It goes over
the context in blocks of BLOCK keys with a running maximum and sum for each row (FlashAttention-2: Dao 2023, arXiv
2307.08691). The keys and values of a block are arranged once for all rows of the task, but for a few, see `few_rows.py`. PIECE keys are summed up by
themselves, then added to the pieces before. A token that is decoded has a task for each piece, and shares it with other tokens
that see the same slots there; whoever does a token's last piece adds them up. Blocks and pieces begin at multiples of their length, whatever the chunk: what is summed in which order depends
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
from lightllm.ops.cpu.kernels.block_packing import (
    at_wide,
    find_lines,
    key_at,
    pack_keys,
    pack_queries,
    pack_values,
    position_at,
    value_at,
    zeros_bytes,
)
from lightllm.ops.cpu.kernels.decode_attention import LOWEST, change_scores
from lightllm.ops.cpu.kernels.few_rows import MOST_ROWS, MOST_ROWS_OF_VALUES, add_few_values, score_few
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    address_of,
    exp,
    floats,
    int64s,
    kernel,
    plain_nan,
    scratch,
    take_next,
    uint8s,
    uint16s,
)
from lightllm.ops.cpu.kernels.numbers import BY_NAME
from lightllm.ops.cpu.kernels.vectors import ROWS, weights_of_rows
from lightllm.ops.cpu_kind import CpuKind, chosen

_TILED = chosen() == CpuKind.AMX
_HIDDEN = np.float32(-math.inf)
"""The score of a key that is not seen: its weight is 0. A row may begin with such keys alone, so its maximum begins at LOWEST."""
_store = BY_NAME["bfloat16"].store
_LOG2_E = np.float32(1 / math.log(2))
_found = scratch(2 * ROWS)

product4, add_product4, add_product2 = (
    pairs.make_product(4, add=False), pairs.make_product(4, add=True), pairs.make_product(2, add=True)
)  # fmt: skip


@kernel
def score_rows(rows, queries, wide, keys, scores):
    """scores [rows, BLOCK] = queries [rows, wide] keys [wide / 2, BLOCK, 2]"""
    product4(rows, queries, 2 * wide, keys, 4 * BLOCK, wide // 2, scores, 4 * BLOCK, 0, 0, 0)


@kernel
def add_values(rows, weights, count, values, wide, out):
    """out [rows, wide] += weights [rows, the first `count` of BLOCK] values [BLOCK / 2, wide, 2]"""
    right, stride, pairs = 4 * wide, 4 * wide, count // 2
    i = 0
    while i + 64 <= wide:
        to = out + 4 * i
        add_product4(rows, weights, 2 * BLOCK, values + 4 * i, right, pairs, to, stride, to, stride, 0)
        i += 64
    if i < wide:
        to = out + 4 * i
        add_product2(rows, weights, 2 * BLOCK, values + 4 * i, right, pairs, to, stride, to, stride, 0)


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
def scale_and_change(call, scores, at_row, columns, head, distance):
    """Scores that are more than scaled products, changed here; distance: from the query to the block's first key."""
    scale, softcap = floats(call[at.SCALE])[0], floats(call[at.SCALE])[1]
    for i in range(at_row, at_row + columns):
        scores[i] *= scale
    change_scores(scores, at_row, columns, softcap, call[at.ALIBI], head, distance)


@kernel
def weigh(scores, rows, scale, weights, state, first_row, out, wide):
    """The scores of up to ROWS rows become weights in bfloat16, and what was summed before shrinks to the new maxima.

    scores, weights: addresses of the first row's; state: maxima and sums of all rows, a pair each; out: their sums.
    """
    found = _found()
    weights_of_rows(scores, scale, _LOG2_E, weights, address_of(state) + 8 * first_row, address_of(found))
    for i in range(rows):
        row = first_row + i
        before, above = state[2 * row], found[i]
        if above > before:
            shrink = exp(before - above)
            state[2 * row] = above
            state[2 * row + 1] *= shrink
            for j in range(row * wide, (row + 1) * wide):
                out[j] *= shrink
        state[2 * row + 1] += found[ROWS + i]


@kernel
def hide(scores, at_row, columns, first, stop):
    """All but the keys first .. stop - 1 of a block."""
    for i in range(at_row, at_row + min(first, columns)):
        scores[i] = _HIDDEN
    for i in range(at_row + max(stop, 0), at_row + columns):
        scores[i] = _HIDDEN


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
    rows. keys: packed, or 0 if they are read where they lie. values: as `keys` are, if they are not packed yet but to be written
    in their place, when they have been read; or 0."""
    group, window, wide = call[at.GROUP], call[at.WINDOW], at_wide(call)
    weights_at = work + 4 * TILE * BLOCK
    scores = floats(work)
    plain = not call[at.ALIBI] and floats(call[at.SCALE])[1] <= 0
    scale = floats(call[at.SCALE])[0] if plain else np.float32(1)
    state_at, sums = floats(state), state + 8 * all_rows
    out = floats(sums)
    used = task[at.TOKENS] * group
    for tile in range(0, rows, TILE):
        nearest = position_at(task, tile // group)
        farthest = position_at(task, (min(tile + TILE, used) - 1) // group)
        if start > farthest or (window and start + BLOCK - 1 <= nearest - window):
            continue
        some, own_rows = min(TILE, rows - tile), min(TILE, used - tile)
        columns = min(BLOCK, (farthest - start + TILE) // TILE * TILE)
        if not keys:
            score_few(rows, queries, wide, lines, key_at(call, kv_head), work, soon, key_at(call, soon_head))
        else:
            score_rows(some, queries + 2 * tile * wide, wide, keys, work)
        if not plain or nearest - start + 1 < BLOCK or (window and farthest - window >= start):
            index, head = tile // group, tile % group
            for row in range(own_rows):
                at_row, own = row * BLOCK, position_at(task, index)
                if not plain:
                    scale_and_change(call, scores, at_row, columns, kv_head * group + head, own - start)
                if own - start + 1 < BLOCK or (window and own - window >= start):
                    hide(scores, at_row, BLOCK, own - window + 1 - start if window else 0, own - start + 1)
                head += 1
                if head == group:
                    index, head = index + 1, 0
        for row in range(0, own_rows, ROWS):
            weigh(
                work + 4 * row * BLOCK, min(ROWS, own_rows - row), scale, weights_at + 2 * row * BLOCK, state_at,
                first_row + tile + row, out, wide,
            )  # fmt: skip
        to = sums + 4 * (first_row + tile) * wide
        if not values:
            value, soon_value = value_at(call, kv_head), value_at(call, soon_head)
            add_few_values(rows, weights_at, columns, wide, lines, value, to, soon, soon_value)
        else:
            if values == keys:
                copies = values + 4 * BLOCK * wide
                pack_values(call, lines, count, kv_head, soon, soon_head, wide, values, copies)
            add_values(some, weights_at, columns, values, wide, to)


@kernel
def attend_piece(call, task, piece, rows, lines, queries, work, state):
    """A piece of the context for all heads of the task. rows: of a head."""
    wide, heads = at_wide(call), task[at.HEADS]
    zeros = lines + 40 * BLOCK
    keys = work + 6 * TILE * BLOCK
    copies = keys + 4 * BLOCK * wide
    values = keys  # of few rows: half the memory, which stays in the first cache
    if rows > TILE:
        values += 2 * BLOCK * wide
    in_place = not _TILED and call[at.HEAD_DIM] == wide and call[at.ELEMENT] == at.BFLOAT16
    if in_place and rows <= MOST_ROWS:
        keys = 0
    if in_place and rows <= MOST_ROWS_OF_VALUES:
        values = 0
    begin(floats(state), heads * rows, wide)
    last = position_at(task, task[at.TOKENS] - 1)
    first = max(task[at.POSITION] - call[at.WINDOW] + 1, 0) if call[at.WINDOW] else 0
    begin_at = max(piece * PIECE, first // BLOCK * BLOCK)
    now, ahead, own = int64s(lines), int64s(lines + 8 * BLOCK), int64s(lines + 16 * BLOCK)
    find_lines(call, task, begin_at, last, zeros, ahead)
    for start in range(begin_at, min((piece + 1) * PIECE, last + 1), BLOCK):
        for j in range(BLOCK):
            now[j], now[3 * BLOCK + j] = ahead[j], ahead[3 * BLOCK + j]  # of slots, of scales
        find_lines(call, task, start + BLOCK, last, zeros, ahead)
        count = min(BLOCK, (last - start + TILE) // TILE * TILE)
        for head in range(heads):
            kv_head = task[at.KV_HEAD] + head
            soon, soon_head = ahead, task[at.KV_HEAD]
            if head + 1 < heads:
                soon, soon_head = now, kv_head + 1
            if keys:
                pack_keys(call, now, own, count, kv_head, soon, soon_head, wide, keys, copies)
            if values and values != keys:
                pack_values(call, now, count, kv_head, soon, soon_head, wide, values, copies)
            attend_block(
                call, task, start, count, kv_head, rows, head * rows, heads * rows, now, soon, soon_head,
                queries + 2 * head * rows * wide, keys, values, work, state,
            )  # fmt: skip


@kernel
def add_piece(state, of_head, first, total, rows, heads, wide):
    """What was summed up for `rows` rows of each head, from the `first` of the `of_head` that `state` has, to a total."""
    for head in range(heads):
        for row in range(rows):
            one, own = head * of_head + first + row, head * rows + row
            before, more = total[2 * own], state[2 * one]
            above = max(before, more)
            shrink, share = exp(before - above), exp(more - above)
            total[2 * own] = above
            total[2 * own + 1] = total[2 * own + 1] * shrink + state[2 * one + 1] * share
            sums, to = 2 * heads * of_head + one * wide, 2 * heads * rows + own * wide
            for i in range(wide):
                total[to + i] = total[to + i] * shrink + state[sums + i] * share


@kernel
def attend(call, task, scratch):
    wide, heads, group = at_wide(call), task[at.HEADS], call[at.GROUP]
    rows = task[at.TOKENS] * group
    if _TILED:
        rows = (rows + TILE - 1) // TILE * TILE
    lines = scratch + 64
    queries = lines + 40 * BLOCK + zeros_bytes(call)
    work = queries + 2 * call[at.MOST_HEADS] * call[at.MOST_ROWS] * wide
    total = work + 6 * TILE * BLOCK + 6 * BLOCK * wide + 8 * BLOCK
    zeros = int64s(lines + 40 * BLOCK)
    for i in range(zeros_bytes(call) // 8):
        zeros[i] = 0
    for head in range(heads):
        pack_queries(call, task, task[at.KV_HEAD] + head, rows, wide, queries + 2 * head * rows * wide)
    members, state = task[at.MEMBERS], total + 4 * call[at.STATE_SIZE]
    if members:
        state = call[at.STATES] + 4 * task[at.STATE]
    for piece in range(task[at.FIRST_PIECE], task[at.END_PIECE]):
        first = not members and piece == task[at.FIRST_PIECE]  # there is nothing yet to add it to
        own_state = total if first else state
        attend_piece(call, task, piece, rows, lines, queries, work, own_state)
        for i in range(task[at.TOKENS] if members else 1):
            token, tokens, own = task[at.TOKEN], task[at.TOKENS], rows
            links, count, done = members, 0 if first else 1, piece + 1 == task[at.END_PIECE]
            if members:
                member = int64s(members + 8 * at.MEMBER_LENGTH * i)
                token, tokens, own = member[at.MEMBER_TOKEN], 1, group
                links, count = member[at.LINKS], member[at.NUM_LINKS]
                done = take_next(call[at.COUNTERS] + 8 * member[at.COUNTER]) == count - 1
                if not done:
                    continue
                begin(floats(total), heads * own, wide)
            for number in range(count):
                one, of_head, at_first = state, rows, 0
                if members:
                    link = int64s(links + 8 * at.LINK_LENGTH * number)
                    one = call[at.STATES] + 4 * link[at.LINK_STATE]
                    of_head, at_first = link[at.LINK_ROWS], link[at.LINK_FIRST]
                add_piece(floats(one), of_head, at_first, floats(total), own, heads, wide)
            if done:
                finish(call, token, tokens, task[at.KV_HEAD], heads, own, wide, floats(total))


@kernel
def finish(call, token, tokens, first_head, heads, rows, wide, total):
    """The result of some tokens that follow each other, of whose heads `total` has `rows` each."""
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    result = uint16s(call[at.OUT])
    for number in range(heads):
        for row in range(tokens * group):
            head, place = (first_head + number) * group + row % group, number * rows + row
            highest_score, count = total[2 * place], total[2 * place + 1]
            shrink = np.float32(1)
            if call[at.SINKS]:
                sink = floats(call[at.SINKS])[head]
                above = max(highest_score, sink)
                shrink = exp(highest_score - above)
                count = count * shrink + exp(sink - above)
            factor = shrink / count
            to = ((token + row // group) * call[at.KV_HEADS] * group + head) * head_dim
            own = 2 * heads * rows + place * wide
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
