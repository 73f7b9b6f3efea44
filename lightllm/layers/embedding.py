"""Vocabulary parallel embedding and output head: each rank holds a run of the vocabulary's rows."""

from __future__ import annotations

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.ops.embedding import embedding
from lightllm.ops.linear import PackedLinear, float32_linear


class VocabEmbedding:
    def __init__(
        self, weight: torch.Tensor, first_id: int, activation_dtype: torch.dtype, group: TpGroup
    ) -> None:
        """weight: [rows of this rank, hidden], the rows of tokens `first_id` and following."""
        self.weight, self.first_id, self.group = weight, first_id, group
        self.activation_dtype = activation_dtype
        self.nbytes = weight.nbytes

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: int64 [T]. Returns a new tensor [T, hidden] in the activation dtype."""
        if self.group.world_size == 1:
            return embedding(ids, self.weight).to(self.activation_dtype)
        x = embedding(ids, self.weight, self.first_id).to(self.activation_dtype)
        return self.group.all_reduce(x)


class LmHead:
    def __init__(self, projection: PackedLinear, vocab_size: int, group: TpGroup) -> None:
        """projection: from hidden to this rank's rows; every rank has the same number, the last ones may be padding."""
        self.projection, self.vocab_size, self.group = projection, vocab_size, group

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [S, hidden]. Returns [S, vocab_size] on every rank: float32 on a GPU, on a CPU what the projection computes in."""
        if x.is_cuda and self.group.world_size == 1:
            return float32_linear(x, self.projection)[:, : self.vocab_size]
        logits = self.group.all_gather_last(self.projection(x))[:, : self.vocab_size]
        return logits.to(torch.float32) if logits.is_cuda else logits
