"""How attention over codes arranges what it multiplies: queries of 16 bits, keys and values of 8, see `coded_attention.py`."""

from __future__ import annotations

import numpy as np

from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.calls import coded_attention as coded
from lightllm.ops.cpu.calls.block_attention import BLOCK, TILE
from lightllm.ops.cpu.kernels import pairs, quads
from lightllm.ops.cpu.kernels.block_packing import token_at
from lightllm.ops.cpu.kernels.lowlevel import (
    address_of,
    float_of,
    floats,
    int32s,
    int64s,
    kernel,
    uint8s,
    uint16s,
)
from lightllm.ops.cpu.kernels.numbers import BY_NAME

_LANES = quads.LANES
_load = BY_NAME["bfloat16"].load
_LEAST = np.int32(27 << 7)
"""2 ** -100 in bfloat16: queries of zeros have some scale too."""
_LEAST_FACTOR = np.float32(2.0**-100)


@kernel
def wide_of(call):
    return (call[at.HEAD_DIM] + coded.WIDTH - 1) // coded.WIDTH * coded.WIDTH


@kernel
def pack_queries(call, task, kv_head, rows, wide, to, own):
    """int8 [2, some, wide] for each TILE rows: of numbers of 16 bits the upper parts of all rows, then the lower ones. own: of each row
    what `quads.scores_of` needs of it."""
    group, head_dim = call[at.GROUP], call[at.HEAD_DIM]
    for row in range(rows):
        first = row // TILE * TILE
        upper = to + 2 * first * wide + (row - first) * wide
        lower = upper + min(TILE, rows - first) * wide
        q = call[at.Q] + 2 * (
            token_at(task, row // group) * call[at.Q_STRIDE] + (kv_head * group + row % group) * head_dim
        )
        pack_query(q, head_dim, wide, upper, lower, own + coded.OWN * row)


@kernel
def pack_query(q, head_dim, wide, upper, lower, own):
    most = largest_of(uint16s(q), head_dim)
    split(
        uint16s(q),
        head_dim,
        np.float32(quads.LARGEST_SIGNED) / most,
        uint8s(upper),
        uint8s(lower),
        int32s(own),
    )
    for i in range(head_dim, wide):
        uint8s(upper)[i], uint8s(lower)[i] = 0, 0
    floats(own)[2] = most / np.float32(quads.LARGEST_SIGNED)


@kernel
def largest_of(q, count):
    """Of the numbers without their signs; NaN is the largest."""
    most = _LEAST
    for i in range(count):
        most = max(most, np.int32(q[i]) & np.int32(0x7FFF))
    return float_of(most << np.int32(16))


@kernel
def split(q, count, factor, upper, lower, own):
    more, less = np.int32(0), np.int32(0)
    for i in range(count):
        code = quads.nearest(_load(q, i) * factor)
        high = (code + np.int32(128)) >> np.int32(8)
        low = code - (high << np.int32(8))
        upper[i], lower[i] = np.uint8(high), np.uint8(low)
        more += high
        less += low
    # The codes that they meet are 128 more than they should be.
    own[0], own[1] = more << np.int32(7), less << np.int32(7)


@kernel
def find_codes(call, task, start, last, lines, scales):
    """Addresses of the slots of a block's keys, and of their scales; behind the last key its own."""
    slots = int32s(call[at.SLOTS] + 4 * task[at.TABLE_ROW] * call[at.ROW_STRIDE])
    for j in range(BLOCK):
        slot = np.int64(slots[min(start + j, last)])
        lines[j] = call[at.KV] + slot * call[at.SLOT_STRIDE]
        scales[j] = call[at.SCALES] + 2 * slot * call[at.SCALE_STRIDE]
        pairs.fetch_ahead(scales[j])


@kernel
def read_factors(scales, head, seen, count, factors):
    """Of a block's keys or values; 0 for those that are not seen."""
    for j in range(seen):
        factors[j] = float_of(np.int32(uint16s(scales[j])[head]) << np.int32(16))
    for j in range(seen, count):
        factors[j] = np.float32(0)


@kernel
def share_factors(factors, first, stop, count, shares):
    """Of values' factors first .. stop - 1 the shares of the largest, times the largest code of a weight; 0 for all others. Returns what
    one code of it stands for; NaN if a factor is not finite."""
    most, total = _LEAST_FACTOR, np.float32(0)
    for j in range(first, stop):
        most = max(most, factors[j])
        total += factors[j]
    steps = np.float32(quads.LARGEST_UNSIGNED) / most
    for j in range(count):
        shares[j] = factors[j] * steps if j >= first and j < stop else np.float32(0)
    return most / np.float32(quads.LARGEST_UNSIGNED) + total * np.float32(0)


@kernel
def find_heads(call, lines, head, count, wide, copies, heads):
    """Addresses of a head's codes of each slot; where they are to be padded, of copies."""
    head_dim = call[at.HEAD_DIM]
    for j in range(count):
        heads[j] = lines[j] + head * head_dim
    if head_dim < wide:
        for j in range(count):
            copy(uint8s(heads[j]), head_dim, uint8s(copies + j * wide), wide)
            heads[j] = copies + j * wide


@kernel
def copy(codes, count, to, wide):
    for i in range(count):
        to[i] = codes[i]
    for i in range(count, wide):
        to[i] = 0


@kernel
def pack_keys(heads, count, soon, place, wide, to):
    """uint8 [wide / 4, BLOCK, 4] of a block of `count` keys, each code 128 more. heads: address of each key. What is packed next, at
    this place of the slots `soon`, is fetched meanwhile."""
    for j in range(0, count, _LANES):
        own = int64s(address_of(heads) + 8 * j)
        for i in range(0, wide // 4, _LANES):
            quads.transpose_raised(own, 4 * i, to + 4 * (i * BLOCK + j), 4 * BLOCK)
            for k in range(j, j + _LANES):
                pairs.fetch_ahead(soon[k] + place + 4 * i)


@kernel
def pack_values(heads, count, soon, place, wide, to):
    """int8 [count / 4, wide, 4] in the order of `mixed_place`, likewise."""
    for j in range(0, count, 4):
        a, b, c, d = heads[j], heads[j + 1], heads[j + 2], heads[j + 3]
        for i in range(0, wide, coded.WIDTH):
            quads.mix_four(a + i, b + i, c + i, d + i, to + 4 * (j // 4 * wide + i))
            for k in range(j, j + 4):
                pairs.fetch_ahead(soon[k] + place + i)
