"""Drives `TpPartBaseModel.forward` without a backend: one KV memory, requests in rows, any chunking."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightllm.backend.kv_memory import KvShape
from lightllm.models.base import TpPartBaseModel
from lightllm.ops.batch import Embeds, make_batch
from lightllm.ops.kv_codes import FORMATS


class ModelDriver:
    """Slots are dealt at random (`shuffled`) or as one run a row; KV memory starts as NaN, so that a wrong read shows."""

    def __init__(
        self,
        model: TpPartBaseModel,
        rows: int = 4,
        max_len: int = 256,
        shuffled: bool = False,
        kv_type: str = "None",
    ) -> None:
        config = model.config
        self.model = model
        slots = rows * max_len
        of = KvShape(
            1, config.num_kv_heads, config.head_dim, model.kv_dtype, config.latent_dim, FORMATS.get(kv_type)
        )
        device = model.device
        self.kv = [of.make_layer(slots, device) for _ in range(config.num_layers)]
        for layer in self.kv:
            (layer.data if layer.scales is None else layer.scales).fill_(float("nan"))
        order = (
            torch.randperm(slots, generator=torch.Generator().manual_seed(0))
            if shuffled
            else torch.arange(slots)
        )
        self.slots = order.to(device, torch.int32).view(rows, max_len)
        self.req_to_token = torch.full((rows + 1, max_len), slots, dtype=torch.int32, device=device)
        self.kv_lens = [0] * rows

    def step(
        self,
        work: Sequence[tuple[int, Sequence[int]]],
        num_decode: int = 0,
        logits: bool = True,
        embeds: Embeds | None = None,
    ) -> torch.Tensor:
        """Computes new tokens of some rows: (row, token ids) each, decode rows first. Logits of every token, or none."""
        ids, rows, q_lens, kv_lens = [], [], [], []
        for row, tokens in work:
            start, stop = self.kv_lens[row], self.kv_lens[row] + len(tokens)
            self.req_to_token[row, start:stop] = self.slots[row, start:stop]
            self.kv_lens[row] = stop
            ids += list(tokens)
            rows.append(row)
            q_lens.append(len(tokens))
            kv_lens.append(stop)
        device = self.model.device
        logit_index = None if logits else torch.arange(0, device=device)
        batch = make_batch(
            torch.tensor(ids, device=device),
            rows,
            q_lens,
            kv_lens,
            num_decode,
            self.req_to_token,
            self.kv,
            logit_index,
            embeds,
        )
        return self.model.forward(batch)

    def share_prefix(self, source: int, row: int, length: int) -> None:
        """An empty row takes over the first tokens of another, as the prefix cache does."""
        assert self.kv_lens[row] == 0 and self.kv_lens[source] >= length
        self.req_to_token[row, :length] = self.req_to_token[source, :length]
        self.kv_lens[row] = length

    def greedy(self, row: int, prompt: Sequence[int], count: int, chunk: int = 4096) -> list[int]:
        """`count` tokens of one request alone, its prompt in chunks."""
        for start in range(0, len(prompt), chunk):
            logits = self.step([(row, prompt[start : start + chunk])])
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(self.step([(row, tokens[-1:])], num_decode=1)[-1].argmax()))
        return tokens
