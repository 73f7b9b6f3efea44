"""What makes one layer's attention differ from another's: made once with the layer, read by every implementation."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, eq=False)
class BlockSparsity:
    """Of Phi-3-small. Positions form blocks of `block_size`; a query in block a sees a key in block b if a - b < local_blocks,
    or if b + 1 + offsets[head] is a multiple of `stride`."""

    block_size: int
    local_blocks: int
    stride: int
    offsets: torch.Tensor
    """int32 [heads] of this rank."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionSpec:
    """score(q, k) = cap(scale * q·k) - alibi_slopes[head] * distance, where cap(s) = softcap * tanh(s / softcap).

    `distance` is the query's position minus the key's; a query sees the keys with 0 <= distance, and distance < window
    if there is a window. Scores and softmax are float32.
    """

    scale: float
    window: int = 0
    """Tokens a query sees, itself included; 0: all."""
    softcap: float = 0.0
    """0: scores are not capped."""
    alibi_slopes: torch.Tensor | None = None
    """float32 [heads] of this rank (Press et al. 2021, arXiv 2108.12409)."""
    sinks: torch.Tensor | None = None
    """float32 [heads] of this rank: a score of each head that joins the softmax's denominator and adds no value (gpt-oss)."""
    sparsity: BlockSparsity | None = None
    """Blocks that are left out; not beside a window."""

    def __post_init__(self) -> None:
        assert not (self.window and self.sparsity), "no implementation computes both"

    @property
    def is_product_only(self) -> bool:
        """Scores are scaled products and nothing else; there may be a window."""
        return not self.softcap and self.alibi_slopes is None and self.sinks is None and self.sparsity is None
