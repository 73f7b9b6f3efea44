"""Which tasks the attention kernel of blocks has for tokens that are decoded: one a piece of a context, or of several contexts
whose slots are the same there, as those of requests with a common prefix are. So a prefix is read once a round, and a token's
sums are the same either way: pieces begin at multiples of their length in every context.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.cpu.calls import block_attention as at

_MOST_HEADS = 8
"""KV heads of a task: they lie side by side, and memory is read fastest in its order."""
_MOST_SHARED_ROWS = 64
"""Of a KV head in a task of several tokens: their queries and sums stay in the second cache."""
TASKS_PER_THREAD = 4


class Tasks(NamedTuple):
    table: np.ndarray
    """int64 [n, TASK_LENGTH]"""
    most_rows: int
    """That one of them has for a KV head, with a matrix unit a multiple of TILE."""
    counters: int = 0
    states: int = 0
    """float32"""
    told: tuple[np.ndarray, ...] = ()
    """What they point to."""


class _Pieces(NamedTuple):
    """Pieces of all tokens' contexts, [n] each: by token, then by position."""

    token: np.ndarray
    number: np.ndarray
    """PIECE positions each, from position 0."""
    position: np.ndarray
    """Of the token."""
    of_token: np.ndarray
    """Pieces of the token."""
    begin: np.ndarray
    """The token's first, among all."""


def seen_pieces(first: np.ndarray, last: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The first piece that tokens at positions first .. last see, and the one behind the last."""
    begin = np.maximum(first - window + 1, 0) if window else np.zeros_like(first)
    return begin // at.PIECE, last // at.PIECE + 1


def decode_tasks(metadata: AttentionMetadata, shape: tuple[int, int, int], window: int) -> Tasks:
    """metadata: `decode_by_token`. shape: KV heads, query heads of each, head_dim."""
    kv_heads, group, head_dim = shape
    count = metadata.num_decode
    positions = metadata.kv_len[:count].numpy().astype(np.int64) - 1
    rows = metadata.rows[:count].numpy()
    if int(positions.max()) + 1 < at.PIECE:  # a piece a token, of which nobody sees the end: none is shared
        tasks = _table(kv_heads, rows, np.arange(count), positions, 0, 1)
        return Tasks(tasks.reshape(-1, at.TASK_LENGTH), group)
    pieces = _pieces(positions, window)
    leader = _leaders(pieces, rows, metadata.req_to_token.numpy())
    order, first, size = _grouped(leader, pieces.position, max(1, _MOST_SHARED_ROWS // group))
    alone = (size == 1) & (pieces.of_token[order[first]] == 1)
    of_task = order[first]
    token = pieces.token[of_task]
    tasks = _table(kv_heads, rows[token], token, pieces.position[of_task], pieces.number[of_task], size)
    parts = len(tasks)
    if alone.all():
        return Tasks(tasks.reshape(-1, at.TASK_LENGTH), group)

    sizes = at.state_size(1, 1, head_dim) * group * size * tasks[..., at.HEADS]
    ends = np.cumsum(np.where(alone, 0, sizes)).reshape(sizes.shape)
    tasks[..., at.STATE] = np.where(alone, 0, ends - sizes)
    task = np.repeat(np.arange(len(first)), size)  # in `order`, as what follows
    links = np.empty((parts, len(order), at.LINK_LENGTH), np.int64)
    links[:, order, at.LINK_STATE] = tasks[:, task, at.STATE]
    links[:, order, at.LINK_ROWS] = size[task] * group
    links[:, order, at.LINK_FIRST] = (np.arange(len(order)) - first[task]) * group
    members = np.empty((parts, len(order), at.MEMBER_LENGTH), np.int64)
    part = np.arange(parts)[:, None]
    members[..., at.MEMBER_TOKEN] = pieces.token[order]
    members[..., at.MEMBER_POSITION] = pieces.position[order]
    members[..., at.COUNTER] = 2 + part * count + pieces.token[order]
    members[..., at.LINKS] = links.ctypes.data + (part * len(order) + pieces.begin[order]) * links.strides[1]
    members[..., at.NUM_LINKS] = pieces.of_token[order]
    tasks[..., at.MEMBERS] = np.where(
        alone, 0, members.ctypes.data + (part * len(order) + first) * members.strides[1]
    )
    longest_first = np.argsort(-size, kind="stable")
    table = np.ascontiguousarray(tasks[:, longest_first]).reshape(-1, at.TASK_LENGTH)
    return Tasks(table, int(size.max()) * group, parts * count, int(ends[-1, -1]), (members, links))


def _table(
    kv_heads: int,
    rows: np.ndarray,
    tokens: np.ndarray,
    positions: np.ndarray,
    pieces: np.ndarray | int,
    sizes: np.ndarray | int,
) -> np.ndarray:
    """int64 [parts, n, TASK_LENGTH]: n tasks without members, shared out by KV heads."""
    heads, parts = _heads(kv_heads, len(rows))
    table = np.zeros((parts, len(rows), at.TASK_LENGTH), np.int64)
    table[..., at.TABLE_ROW], table[..., at.TOKENS] = rows, sizes
    table[..., at.TOKEN], table[..., at.POSITION] = tokens, positions
    first_heads = np.arange(0, kv_heads, heads)[:, None]
    table[..., at.KV_HEAD], table[..., at.HEADS] = first_heads, np.minimum(heads, kv_heads - first_heads)
    table[..., at.FIRST_PIECE] = pieces
    table[..., at.END_PIECE] = table[..., at.FIRST_PIECE] + 1
    return table


def _pieces(positions: np.ndarray, window: int) -> _Pieces:
    firsts, ends = seen_pieces(positions, positions, window)
    counts = ends - firsts
    begins = np.cumsum(counts) - counts
    token = np.repeat(np.arange(len(positions)), counts)
    number = firsts[token] + np.arange(len(token)) - begins[token]
    return _Pieces(token, number, positions[token], counts[token], begins[token])


def _leaders(pieces: _Pieces, rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """int64 [n]: of each piece, which one has the same slots in the same places: itself, or another one's leader. A piece that a
    token does not see to its end is alone."""
    leader = np.arange(len(pieces.token))
    whole = np.flatnonzero((pieces.number + 1) * at.PIECE <= pieces.position + 1)
    begin = pieces.number[whole] * at.PIECE
    key = table[rows[pieces.token[whole]], begin].astype(np.int64) * table.shape[1] + begin
    by_key = np.argsort(key, kind="stable")
    borders = np.flatnonzero(np.diff(key[by_key])) + 1
    if len(borders) + 1 >= len(whole):
        return leader
    for same in np.split(by_key, borders):
        if len(same) > 1:
            own, at_first = whole[same], begin[same[0]]
            slots = table[rows[pieces.token[own]], at_first : at_first + at.PIECE]
            leader[own[(slots == slots[0]).all(1)]] = own[0]
    return leader


def _grouped(
    leader: np.ndarray, position: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces in an order in which those of one task stand together, by position; where each task's begin there; how many each
    has, at most `most`."""
    order = np.lexsort((position, leader))
    begin = np.flatnonzero(np.diff(leader[order], prepend=-1))
    sizes = np.diff(begin, append=len(order))
    if sizes.max(initial=0) > most:
        rank = np.arange(len(order)) - np.repeat(begin, sizes)
        begin = np.flatnonzero(rank % most == 0)
        sizes = np.diff(begin, append=len(order))
    return order, begin, sizes


def _heads(kv_heads: int, tasks: int) -> tuple[int, int]:
    """KV heads of a task, and how many tasks share those of a piece."""
    heads, wanted = min(kv_heads, _MOST_HEADS), TASKS_PER_THREAD * torch.get_num_threads()
    while heads > 1 and tasks * -(-kv_heads // heads) < wanted:
        heads = -(-heads // 2)
    return heads, -(-kv_heads // heads)
