"""Attention of one token over its context, keys and values read in place by slot number (TokenAttention on a CPU).

A task is a piece of one context: up to SPLIT tokens in blocks of BLOCK, with a running maximum and sum (online softmax:
Milakov and Gimelshein 2018, arXiv 1805.02867). Where a context has several pieces, whoever finishes its last one adds them up
(Flash-Decoding). What is summed in which order depends on the context's length alone, so a token's result does not depend on
what else is in the batch, nor on the number of threads.

All heads of a token are read before the next token: their keys lie side by side, and memory is read fastest in its order. A
task for each head reads a piece of every slot: ten times slower where slots are longer than a page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import decode_attention as at
from lightllm.ops.cpu.calls.decode_attention import BLOCK, SPLIT
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    exp,
    floats,
    int32s,
    int64s,
    kernel,
    maximum,
    plain_nan,
    take_next,
)  # fmt: skip
from lightllm.ops.cpu.kernels.numbers import BY_NAME, Numbers

LOWEST = np.float32(-1e30)
"""The score of a key that is not there: its weight is 0 beside any other."""


def make(
    numbers: Numbers, itemsize: int
) -> Any:  # long because: functions for one kind of numbers stand in it
    """The kernel for queries, KV memory and results of these numbers."""
    elements, load, _, store, _ = numbers

    @kernel
    def score4(q, q_at, kv, k0, k1, k2, k3, head_dim, scores, to):
        """Scores of four keys, which begin at k0 .. k3."""
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(head_dim):
            x = q[q_at + i]
            s0 += x * load(kv, k0 + i)
            s1 += x * load(kv, k1 + i)
            s2 += x * load(kv, k2 + i)
            s3 += x * load(kv, k3 + i)
        scores[to], scores[to + 1], scores[to + 2], scores[to + 3] = s0, s1, s2, s3

    @kernel
    def add4(out, to, kv, v0, v1, v2, v3, head_dim, weights, w):
        """Adds four values, each with its weight."""
        w0, w1, w2, w3 = weights[w], weights[w + 1], weights[w + 2], weights[w + 3]
        for i in range(head_dim):
            out[to + i] += (
                w0 * load(kv, v0 + i) + w1 * load(kv, v1 + i)
                + w2 * load(kv, v2 + i) + w3 * load(kv, v3 + i)
            )  # fmt: skip

    @kernel
    def score4x2(q, q_at, kv, k0, k1, k2, k3, head_dim, scores, to):
        """Of two neighbouring heads: each key is made floats once."""
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        t0, t1, t2, t3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(head_dim):
            x, y = q[q_at + i], q[q_at + head_dim + i]
            a, b, c, d = load(kv, k0 + i), load(kv, k1 + i), load(kv, k2 + i), load(kv, k3 + i)
            s0 += x * a
            s1 += x * b
            s2 += x * c
            s3 += x * d
            t0 += y * a
            t1 += y * b
            t2 += y * c
            t3 += y * d
        scores[to], scores[to + 1], scores[to + 2], scores[to + 3] = s0, s1, s2, s3
        to += BLOCK
        scores[to], scores[to + 1], scores[to + 2], scores[to + 3] = t0, t1, t2, t3

    @kernel
    def add4x2(out, to, kv, v0, v1, v2, v3, head_dim, weights, w):
        w0, w1, w2, w3 = weights[w], weights[w + 1], weights[w + 2], weights[w + 3]
        w += BLOCK
        u0, u1, u2, u3 = weights[w], weights[w + 1], weights[w + 2], weights[w + 3]
        for i in range(head_dim):
            a, b, c, d = load(kv, v0 + i), load(kv, v1 + i), load(kv, v2 + i), load(kv, v3 + i)
            out[to + i] += w0 * a + w1 * b + w2 * c + w3 * d
            out[to + head_dim + i] += u0 * a + u1 * b + u2 * c + u3 * d

    @kernel
    def attend(call, scratch, state, entry, first, last):
        """Tokens first .. last - 1 of a context into state: maxima [heads], sums [heads], weighted values [heads, head_dim].
        scratch: scores [heads, BLOCK], then the scaled queries."""
        kv_heads, group, head_dim = call[at.KV_HEADS], call[at.GROUP], call[at.HEAD_DIM]
        heads = kv_heads * group
        kv, stride = elements(call[at.KV]), call[at.SLOT_STRIDE]
        slots = int32s(call[at.SLOTS] + 4 * int64s(call[at.ROWS])[entry] * call[at.ROW_STRIDE])
        kv_len = np.int64(int32s(call[at.KV_LENS])[entry])
        for head in range(heads):
            state[head], state[heads + head] = LOWEST, np.float32(0)
        for i in range(2 * heads, (2 + head_dim) * heads):
            state[i] = np.float32(0)
        for start in range(first, last, BLOCK):
            end = min(start + BLOCK, last)
            for i in range(start, end, 4):
                a, b, c, d = slot4(slots, i, end - 1, stride)
                for kv_head in range(kv_heads):
                    head, stop = kv_head * group, (kv_head + 1) * group
                    while head < stop:
                        q, to = heads * BLOCK + head * head_dim, head * BLOCK + i - start
                        if head + 1 < stop:
                            score4x2(scratch, q, kv, a, b, c, d, head_dim, scratch, to)
                        else:
                            score4(scratch, q, kv, a, b, c, d, head_dim, scratch, to)
                        head += 2
                    a, b, c, d = a + head_dim, b + head_dim, c + head_dim, d + head_dim
            for head in range(heads):
                weigh(call, scratch, state, heads, head, end - start, kv_len - 1 - start)
            for i in range(start, end, 4):
                a, b, c, d = slot4(slots, i, end - 1, stride)
                for kv_head in range(kv_heads):
                    value, head, stop = (
                        (kv_heads + kv_head) * head_dim,
                        kv_head * group,
                        (kv_head + 1) * group,
                    )
                    v0, v1, v2, v3 = a + value, b + value, c + value, d + value
                    while head < stop:
                        to, w = 2 * heads + head * head_dim, head * BLOCK + i - start
                        if head + 1 < stop:
                            add4x2(state, to, kv, v0, v1, v2, v3, head_dim, scratch, w)
                        else:
                            add4(state, to, kv, v0, v1, v2, v3, head_dim, scratch, w)
                        head += 2

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def decode_attention(call):
        """What each thread runs: tasks until there are none left."""
        counters, tasks, head_dim = call[at.COUNTERS], int32s(call[at.TASKS]), call[at.HEAD_DIM]
        heads, scale = call[at.KV_HEADS] * call[at.GROUP], floats(call[at.SCALE])[0]
        thread = take_next(counters + 8)
        scratch = floats(call[at.SCRATCH] + 4 * thread * heads * (BLOCK + head_dim))
        while True:
            task = take_next(counters)
            if task >= call[at.NUM_TASKS]:
                return
            entry, first = np.int64(tasks[4 * task]), np.int64(tasks[4 * task + 1])
            piece, pieces = np.int64(tasks[4 * task + 2]), np.int64(tasks[4 * task + 3])
            last = min(first + SPLIT, np.int64(int32s(call[at.KV_LENS])[entry]))
            row_bytes = itemsize * entry * heads * head_dim
            q = elements(call[at.Q] + row_bytes)
            for i in range(heads * head_dim):
                scratch[heads * BLOCK + i] = load(q, i) * scale
            state_bytes = 4 * heads * (2 + head_dim)
            state = call[at.STATES] + state_bytes * task
            attend(call, scratch, floats(state), entry, first, last)
            if take_next(counters + 16 + 8 * entry) == pieces - 1:
                first_state = floats(state - state_bytes * piece)
                add_up(call, first_state, pieces, heads)
                out = elements(call[at.OUT] + row_bytes)
                for i in range(heads * head_dim):
                    store(out, i, plain_nan(first_state[2 * heads + i]))

    return decode_attention


@kernel
def slot4(slots, first, last, stride):
    """Where four tokens' vectors begin; past the last token its own again, which then get no weight."""
    return (
        np.int64(slots[first]) * stride,
        np.int64(slots[min(first + 1, last)]) * stride,
        np.int64(slots[min(first + 2, last)]) * stride,
        np.int64(slots[min(first + 3, last)]) * stride,
    )


@kernel
def weigh(call, scores, state, heads, head, count, distance):
    """A block's scores become weights, and what was summed before shrinks to the new maximum.

    distance: from the query to the block's first key.
    """
    head_dim, start = call[at.HEAD_DIM], head * BLOCK
    change_scores(scores, start, count, floats(call[at.SCALE])[1], call[at.ALIBI], head, distance)
    for i in range(start + count, start + BLOCK):
        scores[i] = LOWEST
    highest = max(state[head], maximum(scores, start, BLOCK))
    shrink = exp(state[head] - highest)
    total = np.float32(0)
    for i in range(start, start + BLOCK):
        weight = exp(scores[i] - highest)
        scores[i] = weight
        total += weight
    state[head] = highest
    state[heads + head] = state[heads + head] * shrink + total
    for i in range(2 * heads + head * head_dim, 2 * heads + (head + 1) * head_dim):
        state[i] *= shrink


@kernel
def change_scores(scores, start, count, softcap, alibi, head, distance):
    """Soft cap and ALiBi of one head's scores of neighbouring keys. softcap: 0 for none; alibi: address of all heads' slopes, or 0;
    distance: from the query to the first key."""
    if softcap > 0:
        for i in range(start, start + count):
            scores[i] = softcap * tanh(scores[i] / softcap)
    if alibi:
        slope = floats(alibi)[head]
        for i in range(count):
            scores[start + i] -= slope * np.float32(distance - i)


@kernel
def tanh(x):
    e = exp(np.float32(-2) * abs(x))
    t = (np.float32(1) - e) / (np.float32(1) + e)
    return t if x >= 0 else -t


@kernel
def add_up(call, states, pieces, heads):
    """The pieces of one context become its result, in the place of the first one's weighted values."""
    head_dim = call[at.HEAD_DIM]
    size = heads * (2 + head_dim)
    for head in range(heads):
        highest, total = states[head], np.float32(0)
        for piece in range(1, pieces):
            highest = max(highest, states[piece * size + head])
        if call[at.SINKS]:
            sink = floats(call[at.SINKS])[head]
            highest = max(highest, sink)
            total = exp(sink - highest)
        start = 2 * heads + head * head_dim
        shrink = exp(states[head] - highest)
        total += states[heads + head] * shrink
        for i in range(start, start + head_dim):
            states[i] *= shrink
        for piece in range(1, pieces):
            other = piece * size
            shrink = exp(states[other + head] - highest)
            total += states[other + heads + head] * shrink
            for i in range(start, start + head_dim):
                states[i] += states[other + i] * shrink
        for i in range(start, start + head_dim):
            states[i] /= total


def kernels() -> dict[str, Callable[[], Any]]:
    return {
        f"decode_attention_{name}": partial(make, numbers, 4 if name == "float32" else 2)
        for name, numbers in BY_NAME.items()
    }
