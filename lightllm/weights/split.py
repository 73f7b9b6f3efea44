"""Which slice of a tensor each tensor-parallel rank holds."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """Indices [start, stop) along dimension `dim`."""

    dim: int
    start: int
    stop: int


def even_part(size: int, dim: int, rank: int, world_size: int) -> Part:
    """The rank's share of a dimension that divides evenly: MLP features, query heads."""
    assert size % world_size == 0
    share = size // world_size
    return Part(dim, rank * share, (rank + 1) * share)


def kv_head_part(num_kv_heads: int, head_dim: int, rank: int, world_size: int) -> Part:
    """The rank's rows of a k_proj or v_proj weight; with fewer heads than ranks, neighbouring ranks share a head."""
    if num_kv_heads >= world_size:
        return even_part(num_kv_heads * head_dim, 0, rank, world_size)
    assert world_size % num_kv_heads == 0
    head = rank * num_kv_heads // world_size
    return Part(0, head * head_dim, (head + 1) * head_dim)


def vocab_rows(vocab_size: int, world_size: int) -> int:
    """Rows of the vocabulary per rank; the last rank's may reach beyond the vocabulary (padding)."""
    return -(-vocab_size // world_size)


def vocab_part(vocab_size: int, rank: int, world_size: int) -> Part:
    """The rank's rows of an embedding or output head that exist; see `vocab_rows`."""
    rows = vocab_rows(vocab_size, world_size)
    return Part(0, min(rank * rows, vocab_size), min((rank + 1) * rows, vocab_size))
