"""What one forward pass computes: built by the backend from a `Round`, read by every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer


@dataclasses.dataclass(frozen=True)
class Embeds:
    """Vectors that take the place of token embeddings (of an image, say)."""

    where: torch.Tensor
    """int64 [E]: which of the batch's T tokens; their `input_ids` are any ids of the vocabulary."""
    what: torch.Tensor
    """[E, (1 + n) * hidden]: each token's vector as the model's token embedding would give it, scale included; then, in
    Qwen3-VL, what is added to its residual stream behind the first n layers (DeepStack, arXiv 2406.04334)."""

    def add_behind(self, layer: int, residual: torch.Tensor) -> None:
        """residual: [T, hidden]"""
        size = residual.shape[1]
        if (start := (layer + 1) * size) < self.what.shape[1]:
            residual.index_add_(0, self.where, self.what[:, start : start + size].to(residual.dtype))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The K tokens whose results are read behind the last layer: of all others it computes keys and values alone."""

    tokens: torch.Tensor
    """int64 [K], ascending: which of the batch's T tokens."""
    attention: AttentionMetadata
    """Of these tokens. Each sees what it sees in the batch, and is the prefill backend's if it is part of a chunk."""
    logit_index: torch.Tensor
    """int64 [S]: `Batch.logit_index`, but which of the K tokens."""


@dataclasses.dataclass
class Batch:
    """n entries (requests) with T = sum(q_len) new tokens, decode entries first.

    Everything that changes from round to round is a tensor on the model's device, so that a captured graph can read it
    from buffers that stay where they are, and a GPU is never asked for a length. Only the bounds are numbers of the host.
    """

    input_ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T]: index of each new token in its context, which is where `req_to_token` lists its slot."""
    rope_positions: torch.Tensor
    """int64 [T]: what rotary embeddings turn each new token by. As `positions`, with the row's `rope_delta` added, which is
    never above 0: where one position stands for several tokens (images), later ones lie behind their index. int64 [3, T] of a
    model with M-RoPE where a prompt has images: time, row and column."""
    slots: torch.Tensor
    """int64 [T]: KV slot that each new token's K and V are written to."""
    attention: AttentionMetadata
    """The entries, and what attention reads about them; `TpPartBaseModel.forward` makes it anew for each pass."""
    logit_index: torch.Tensor | None
    """int64 [S]: which of the T positions need logits, in order; None: all of them."""
    kv: list[KvLayer]
    """One a layer."""
    embeds: Embeds | None = None
    """What is no token of the vocabulary."""
    wanted: Wanted | None = None
    """What the last layer computes, where that is less than all; layers that cannot do it compute all."""
    rotary: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    """Filled by `TpPartBaseModel.forward`: for each of the model's kinds of rotary embedding the cosines and the sines of
    the new tokens, each [T, 1, rotated elements]."""

    @property
    def only_decodes(self) -> bool:
        """One token of each entry, all of which need logits."""
        attention = self.attention
        count = attention.num_decode
        alone = count == len(attention.rows) == attention.num_decode_tokens
        return alone and self.logit_index is None and self.wanted is None and self.embeds is None


def make_batch(
    input_ids: torch.Tensor,
    rows: Sequence[int],
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    num_decode: int,
    req_to_token: torch.Tensor,
    kv: list[KvLayer],
    logit_index: torch.Tensor | None = None,
    embeds: Embeds | None = None,
) -> Batch:
    """A batch from lists, to run a model without rounds (warm-up, benchmarks, tests).

    input_ids: int64 [T] on the device; the slots are taken from `req_to_token`, which lists the new tokens already.
    """
    device = req_to_token.device
    lengths = torch.tensor(q_lens)
    ends = lengths.cumsum(0)
    entries = torch.repeat_interleave(lengths)
    positions = torch.arange(int(ends[-1])) + (torch.tensor(kv_lens) - ends)[entries]
    rows_of_tokens = torch.tensor(rows)[entries]
    positions, rows_of_tokens = positions.to(device), rows_of_tokens.to(device)
    attention = AttentionMetadata(
        rows=torch.tensor(rows, device=device),
        q_start=torch.nn.functional.pad(ends, (1, 0)).to(device, torch.int32),
        kv_len=torch.tensor(kv_lens, dtype=torch.int32, device=device),
        req_to_token=req_to_token,
        num_decode=num_decode,
        num_tokens=len(input_ids),
        max_q_len=max(q_lens),
        max_kv_len=max(kv_lens),
        num_decode_tokens=sum(q_lens[:num_decode]),
        no_prefix=list(q_lens[num_decode:]) == list(kv_lens[num_decode:]),
        prefill_lens=np.array([q_lens[num_decode:], kv_lens[num_decode:]], dtype=np.int64),
    )
    slots = req_to_token[rows_of_tokens, positions].long()
    return Batch(input_ids, positions, positions, slots, attention, logit_index, kv, embeds)
