"""Attention of tokens over keys and values of 8 bits (`--llm_kv_type int8kv`), for chunks of prompts and for one token at a time: a
token has the same bits in both.

Tasks, blocks, pieces and members are those of `block_attention.py`, and so is the order of all sums. Queries are split into two
parts of 8 bits, so are the weights of a block's values with the values' scales in them: products are sums of integers, which
are exact, with the instruction that multiplies quads (AVX512-VNNI). A number of 16 bits holds more than bfloat16 does: the
queries were rounded to that before, and of a block's weights the largest has 16 bits, the others that much less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.calls import coded_attention as coded
from lightllm.ops.cpu.calls.block_attention import BLOCK, PIECE, TILE
from lightllm.ops.cpu.kernels import quads
from lightllm.ops.cpu.kernels.block_attention import add_piece, begin, hide, scale_and_change
from lightllm.ops.cpu.kernels.block_packing import position_at
from lightllm.ops.cpu.kernels.code_packing import (
    find_codes,
    find_heads,
    pack_keys,
    pack_queries,
    pack_values,
    read_factors,
    share_factors,
    wide_of,
)
from lightllm.ops.cpu.kernels.decode_attention import LOWEST
from lightllm.ops.cpu.kernels.lowlevel import FAST, exp, floats, int64s, kernel, plain_nan, take_next, uint16s
from lightllm.ops.cpu.kernels.numbers import BY_NAME
from lightllm.ops.cpu.kernels.vectors import highest
from lightllm.ops.cpu_kind import CpuKind, chosen

_LOG2_E = np.float32(1 / math.log(2))
_store = BY_NAME["bfloat16"].store


@kernel
def weigh(
    scores, columns, top, scale, factors, value_unit, upper, lower, state, state_row, out, out_row, wide
):
    """A row's scores become codes of weights times the values' factors, relative to the block's own largest score `top`. What was
    summed before shrinks to the new maximum. scores: address. Returns what a code stands for.

    state: maxima and sums of all rows, a pair each.
    """
    before, own = state[2 * state_row], max(top * scale, LOWEST)
    above = max(before, own)
    total = quads.codes_of_weights(scores, columns, scale * _LOG2_E, own * _LOG2_E, factors, upper, lower)
    share = np.float32(1)
    if above > before:
        shrink = exp(before - above)
        state[2 * state_row] = above
        state[2 * state_row + 1] *= shrink
        for i in range(out_row, out_row + wide):
            out[i] *= shrink
    else:
        share = exp(own - above)
    state[2 * state_row + 1] += total * share
    return share * value_unit


@kernel
def attend_block(
    call, task, start, kv_head, rows, first_row, all_rows, queries, own, keys, values, factors, value_unit, work, state
):  # fmt: skip
    """One block of one KV head, for the rows from `first_row` on of a state of `all_rows`. own: of its rows; factors: address of the
    keys', then of the values', then of the values' shares, then of room for those of a row, BLOCK of each. work: integers of TILE rows twice, then codes of weights, then their units."""
    group, window, wide = call[at.GROUP], call[at.WINDOW], wide_of(call)
    weights, values_at = work + 8 * TILE * BLOCK, factors + 4 * BLOCK
    units = weights + 2 * TILE * BLOCK
    plain = not call[at.ALIBI] and floats(call[at.SCALE])[1] <= 0
    scale = floats(call[at.SCALE])[0] if plain else np.float32(1)
    state_at, sums = floats(state), state + 8 * all_rows
    out = floats(sums)
    read = position_at(task, task[at.TOKENS] - 1) - start + 1  # keys of this block that some row sees
    for tile in range(0, rows, TILE):
        nearest = position_at(task, tile // group)
        farthest = position_at(task, (min(tile + TILE, rows) - 1) // group)
        if start > farthest or (window and start + BLOCK - 1 <= nearest - window):
            continue
        some = min(TILE, rows - tile)
        columns = min(BLOCK, (farthest - start + TILE) // TILE * TILE)
        quads.product_of_signed(
            2 * some, queries + 2 * tile * wide, wide, keys, 4 * BLOCK, (call[at.HEAD_DIM] + 3) // 4, work, 4 * BLOCK,
            0, 0, 0,
        )  # fmt: skip
        index, head = tile // group, tile % group
        for row in range(tile, tile + some):
            scores, position = work + 4 * (row - tile) * BLOCK, position_at(task, index)
            top = quads.scores_of(scores, scores + 4 * some * BLOCK, columns, own + coded.OWN * row, factors)
            if not plain:
                scale_and_change(call, floats(scores), 0, columns, kv_head * group + head, position - start)
            shares, unit, behind = factors + 8 * BLOCK, value_unit, position - start + 1
            if behind < max(columns, min(read, BLOCK)) or (window and position - window >= start):
                seen = max(position - window + 1 - start, 0) if window else 0
                hide(floats(scores), 0, columns, seen, behind)
                shares = factors + 12 * BLOCK  # of what this row sees, whatever else is in its chunk
                unit = share_factors(floats(values_at), seen, min(behind, columns), columns, floats(shares))
                top = highest(floats(scores), 0, columns)
            elif not plain:
                top = highest(floats(scores), 0, columns)
            upper, to = weights + (row - tile) * BLOCK, first_row + row
            floats(units)[row - tile] = weigh(
                scores, columns, top, scale, shares, unit, upper, upper + some * BLOCK, state_at, to, out, to * wide, wide
            )  # fmt: skip
            head += 1
            if head == group:
                index, head = index + 1, 0
        add_values(
            some, weights, columns, values, wide, work, floats(units), sums + 4 * (first_row + tile) * wide
        )


@kernel
def add_values(rows, weights, count, values, wide, work, units, out):
    """out [rows, wide] += weights [rows, the first `count` of BLOCK] values [BLOCK / 4, wide, 4]"""
    for i in range(0, wide, coded.WIDTH):
        quads.product_of_unsigned(
            2 * rows, weights, BLOCK, values + 4 * i, 4 * wide, count // 4, work, 4 * coded.WIDTH, 0, 0, 0
        )
        for row in range(rows):
            place = work + 4 * row * coded.WIDTH
            quads.add_sums(place, place + 4 * rows * coded.WIDTH, units[row], out + 4 * (row * wide + i))


@kernel
def attend_piece(call, task, piece, rows, lines, queries, own, state):
    """A piece of the context for all heads of the task. rows: of a head."""
    wide, heads, kv_heads = wide_of(call), task[at.HEADS], call[at.KV_HEADS]
    now, ahead, of_head = int64s(lines), int64s(lines + 8 * BLOCK), int64s(lines + 16 * BLOCK)
    scales, scales_ahead = int64s(lines + 24 * BLOCK), int64s(lines + 32 * BLOCK)
    factors, copies = lines + 40 * BLOCK, lines + 56 * BLOCK
    keys = copies + BLOCK * wide
    values = keys + BLOCK * wide
    work = values + BLOCK * wide
    begin(floats(state), heads * rows, wide)
    last = position_at(task, task[at.TOKENS] - 1)
    first = max(task[at.POSITION] - call[at.WINDOW] + 1, 0) if call[at.WINDOW] else 0
    begin_at = max(piece * PIECE, first // BLOCK * BLOCK)
    find_codes(call, task, begin_at, last, ahead, scales_ahead)
    for start in range(begin_at, min((piece + 1) * PIECE, last + 1), BLOCK):
        for j in range(BLOCK):
            now[j], scales[j] = ahead[j], scales_ahead[j]
        find_codes(call, task, start + BLOCK, last, ahead, scales_ahead)
        count, seen = min(BLOCK, (last - start + TILE) // TILE * TILE), min(BLOCK, last - start + 1)
        for head in range(heads):
            kv_head = task[at.KV_HEAD] + head
            soon, soon_head = ahead, task[at.KV_HEAD]
            if head + 1 < heads:
                soon, soon_head = now, kv_head + 1
            read_factors(scales, kv_head, seen, count, floats(factors))
            read_factors(scales, kv_heads + kv_head, seen, count, floats(factors + 4 * BLOCK))
            value_unit = share_factors(
                floats(factors + 4 * BLOCK), 0, seen, count, floats(factors + 8 * BLOCK)
            )
            find_heads(call, now, kv_head, count, wide, copies, of_head)
            pack_keys(of_head, count, soon, soon_head * call[at.HEAD_DIM], wide, keys)
            find_heads(call, now, kv_heads + kv_head, count, wide, copies, of_head)
            pack_values(of_head, count, soon, (kv_heads + soon_head) * call[at.HEAD_DIM], wide, values)
            attend_block(
                call, task, start, kv_head, rows, head * rows, heads * rows, queries + 2 * head * rows * wide,
                own + coded.OWN * head * rows, keys, values, factors, value_unit, work, state,
            )  # fmt: skip


@kernel
def attend(call, task, scratch):
    """As of `block_attention`."""
    wide, heads, group = wide_of(call), task[at.HEADS], call[at.GROUP]
    rows, most = task[at.TOKENS] * group, call[at.MOST_HEADS] * call[at.MOST_ROWS]
    lines = scratch + 64
    queries = lines + 56 * BLOCK + 3 * BLOCK * wide + 10 * TILE * BLOCK + 4 * TILE
    own = queries + 2 * most * wide
    total = own + coded.OWN * most
    for head in range(heads):
        pack_queries(
            call, task, task[at.KV_HEAD] + head, rows, wide, queries + 2 * head * rows * wide, own + coded.OWN * head * rows
        )  # fmt: skip
    members, state = task[at.MEMBERS], total + 4 * call[at.STATE_SIZE]
    if members:
        state = call[at.STATES] + 4 * task[at.STATE]
    else:
        begin(floats(total), heads * rows, wide)
    for piece in range(task[at.FIRST_PIECE], task[at.END_PIECE]):
        attend_piece(call, task, piece, rows, lines, queries, own, state)
        for i in range(task[at.TOKENS] if members else 1):
            token, tokens, of_token = task[at.TOKEN], task[at.TOKENS], rows
            links, count, done = members, 1, piece + 1 == task[at.END_PIECE]
            if members:
                member = int64s(members + 8 * at.MEMBER_LENGTH * i)
                token, tokens, of_token = member[at.MEMBER_TOKEN], 1, group
                links, count = member[at.LINKS], member[at.NUM_LINKS]
                done = take_next(call[at.COUNTERS] + 8 * member[at.COUNTER]) == count - 1
                if not done:
                    continue
                begin(floats(total), heads * of_token, wide)
            for number in range(count):
                one, of_head, first = state, rows, 0
                if members:
                    link = int64s(links + 8 * at.LINK_LENGTH * number)
                    one = call[at.STATES] + 4 * link[at.LINK_STATE]
                    of_head, first = link[at.LINK_ROWS], link[at.LINK_FIRST]
                add_piece(floats(one), of_head, first, floats(total), of_token, heads, wide)
            if done:
                finish(call, token, tokens, task[at.KV_HEAD], heads, of_token, wide, floats(total))


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
                _store(result, to + i, plain_nan(total[own + quads.mixed_place(i)] * factor))


def make() -> Any:
    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def coded_attention(call):
        """What each thread runs: tasks until there are none left."""
        scratch = call[at.SCRATCH] + take_next(call[at.COUNTERS] + 8) * call[at.SCRATCH_BYTES]
        while True:
            task = take_next(call[at.COUNTERS])
            if task >= call[at.NUM_TASKS]:
                return
            attend(call, int64s(call[at.TASKS] + 8 * at.TASK_LENGTH * task), scratch)

    return coded_attention


def kernels() -> dict[str, Callable[[], Any]]:
    return {"coded_attention_bfloat16": make} if chosen() >= CpuKind.AVX512_BF16 else {}
