"""How attention in blocks arranges what it multiplies: queries, keys and values of a task, see `block_attention.py`."""

from __future__ import annotations

import numpy as np

from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.calls.block_attention import BLOCK, TILE
from lightllm.ops.cpu.kernels import pairs
from lightllm.ops.cpu.kernels.code_widening import widen_block
from lightllm.ops.cpu.kernels.lowlevel import address_of, int32s, int64s, kernel, uint16s

_LANES = pairs.LANES


@kernel
def token_at(task, index):
    """Of the batch."""
    if task[at.MEMBERS]:
        return int64s(task[at.MEMBERS] + 8 * at.MEMBER_LENGTH * index)[at.MEMBER_TOKEN]
    return task[at.TOKEN] + index


@kernel
def position_at(task, index):
    if task[at.MEMBERS]:
        return int64s(task[at.MEMBERS] + 8 * at.MEMBER_LENGTH * index)[at.MEMBER_POSITION]
    return task[at.POSITION] + index


@kernel
def pack_queries(call, task, kv_head, rows, wide, to):
    """bfloat16 [rows, wide], zeros beyond the task's own and beyond head_dim."""
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    q, out = uint16s(call[at.Q]), uint16s(to)
    count = task[at.TOKENS] * group
    for row in range(rows):
        for i in range(wide):
            out[row * wide + i] = 0
        if row < count:
            head = kv_head * group + row % group
            first = token_at(task, row // group) * call[at.Q_STRIDE] + head * head_dim
            for i in range(head_dim):
                out[row * wide + i] = q[first + i]


@kernel
def key_at(call, kv_head):
    """Bytes from the beginning of a slot of bfloat16."""
    return 2 * kv_head * call[at.HEAD_DIM]


@kernel
def value_at(call, kv_head):
    return 2 * (call[at.KV_HEADS] + kv_head) * call[at.HEAD_DIM]


@kernel
def pack_keys(call, lines, heads, count, kv_head, soon, soon_head, wide, to, copies):
    """[wide / 2, BLOCK, 2] of a block of `count` keys. lines: address of each slot, or of zeros for all that is read there; heads: room
    for as many addresses; copies: room for addresses and numbers of codes. What is packed next, of the slots `soon`, is fetched
    meanwhile."""
    head_dim = call[at.HEAD_DIM]
    key, soon_key = key_at(call, kv_head), key_at(call, soon_head)
    if call[at.ELEMENT] != at.BFLOAT16:
        lines = widen_block(call, lines, kv_head, count, soon, soon_head, wide, copies)
        soon, key, soon_key = lines, 0, 0
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
def pack_values(call, lines, count, kv_head, soon, soon_head, wide, to, copies):
    """[count / 2, wide, 2] in the order of `paired_place`, likewise."""
    head_dim, kv_heads = call[at.HEAD_DIM], call[at.KV_HEADS]
    value, soon_value = value_at(call, kv_head), value_at(call, soon_head)
    if call[at.ELEMENT] != at.BFLOAT16:
        lines = widen_block(call, lines, kv_heads + kv_head, count, soon, kv_heads + soon_head, wide, copies)
        soon, value, soon_value = lines, 0, 0
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
    """Addresses of the slots of a block's keys, of zeros for those behind the last; of codes BLOCK * 3 further on those of their scales."""
    slots = int32s(call[at.SLOTS] + 4 * task[at.TABLE_ROW] * call[at.ROW_STRIDE])
    for j in range(BLOCK):
        seen = start + j <= last
        lines[j] = call[at.KV] + np.int64(slots[start + j]) * call[at.SLOT_STRIDE] if seen else zeros
    if call[at.ELEMENT] != at.BFLOAT16:
        scales = int64s(address_of(lines) + 8 * 3 * BLOCK)
        for j in range(BLOCK):
            seen = start + j <= last
            scales[j] = (
                call[at.SCALES] + 2 * np.int64(slots[start + j]) * call[at.SCALE_STRIDE] if seen else zeros
            )
            pairs.fetch_ahead(scales[j])


@kernel
def at_wide(call):
    return (call[at.HEAD_DIM] + TILE - 1) // TILE * TILE


@kernel
def zeros_bytes(call):
    """A slot of zeros."""
    return (4 * call[at.KV_HEADS] * call[at.HEAD_DIM] + 63) // 64 * 64
