"""Which slice of a tensor each tensor-parallel rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Part(NamedTuple):
    """Every `step`-th index of [start, stop) along dimension `dim`."""

    dim: int
    start: int
    stop: int
    step: int = 1

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of the part."""
        return tensor[(slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)]


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


def fused_qkv_parts(
    layout: str, num_heads: int, num_kv_heads: int, head_dim: int, rank: int, world_size: int
) -> list[Part]:
    """The rank's rows of a weight that holds queries, keys and values: its query heads, then its keys, then its values.

    layout: "stacked": all queries, all keys, all values; "grouped": for each KV head the queries that share it, its
    key, its value. Neighbouring rows are one part.
    """
    assert layout in ("stacked", "grouped")
    group = num_heads // num_kv_heads
    queries = even_part(num_heads, 0, rank, world_size)
    kv = kv_head_part(num_kv_heads, 1, rank, world_size)
    if layout == "stacked":
        heads = list(range(queries.start, queries.stop))
        heads += [num_heads + head for head in range(kv.start, kv.stop)]
        heads += [num_heads + num_kv_heads + head for head in range(kv.start, kv.stop)]
    else:
        heads = [h // group * (group + 2) + h % group for h in range(queries.start, queries.stop)]
        heads += [head * (group + 2) + group for head in range(kv.start, kv.stop)]
        heads += [head * (group + 2) + group + 1 for head in range(kv.start, kv.stop)]
    return merged([Part(0, head * head_dim, (head + 1) * head_dim) for head in heads])


def merged(parts: Sequence[Part]) -> list[Part]:
    """The same indices in as few parts as possible; all are of step 1."""
    result: list[Part] = []
    for part in parts:
        if result and result[-1].dim == part.dim and result[-1].stop == part.start:
            result[-1] = Part(part.dim, result[-1].start, part.stop)
        else:
            result.append(part)
    return result
