"""Rows of logits that are no numbers, between rows that are; and what every way to choose a token has to make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightllm.ops import sample

NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, Callable[[torch.Tensor], None]] = {
    "NaN first": lambda row: row[:1].fill_(NAN),
    "NaN last": lambda row: row[-1:].fill_(NAN),
    "NaN within": lambda row: row[len(row) // 2].fill_(NAN),
    "all NaN": lambda row: row.fill_(NAN),
    "NaN and -inf": lambda row: row.fill_(-INF)[1].fill_(NAN),
    "+inf": lambda row: row[len(row) // 3].fill_(INF),
    "+inf twice": lambda row: row[1:3].fill_(INF),
    "+inf and NaN": lambda row: row[:2].copy_(torch.tensor([INF, NAN])),
    "all -inf": lambda row: row.fill_(-INF),
}
"""What is done to a row."""


def rows_with(names: list[str], vocab: int) -> tuple[torch.Tensor, list[bool]]:
    """Logits float32 [S, vocab], a broken row for each name between good ones; and which rows are good."""
    logits = torch.randn(len(names) + 2, vocab, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 1:] = -INF  # tokens that cannot come are no fault
    for row, name in enumerate(names, 1):
        BROKEN[name](logits[row])
    return logits, [True, *[False] * len(names), True]


def choices(op: Any, logits: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and log-probabilities in every way that the module `op` chooses."""
    rows, where = len(logits), logits.device
    uniforms = torch.linspace(0.01, 0.99, rows, dtype=torch.float64, device=where)
    top_k = torch.full((rows,), 20, device=where)
    top_p, min_p = (torch.full((rows,), p, dtype=torch.float64, device=where) for p in (0.9, 0.001))
    kinds = torch.full((rows,), sample.FILTERED, dtype=torch.int32, device=where)
    scales = torch.full((rows,), 1.5, device=where)
    scratch = torch.empty_like(logits)
    filters = top_k, top_p, min_p
    return {
        "greedy, silent": op.greedy_tokens(logits),
        "greedy": op.sample_greedy(logits.clone(), scratch),
        "random": op.sample_random(logits.clone(), uniforms, scratch),
        "filtered": op.sample_rows(logits.clone(), kinds, scales, uniforms, *filters, scratch),
    }


def check(op: Any, names: list[str], vocab: int, device: str = "cpu") -> None:
    """Broken rows have a token that exists and no log-probability; the others what they have without them in torch."""
    logits, good = rows_with(names, vocab)
    sound = logits.clone()
    sound[[not here for here in good]] = logits[-1]
    expected = choices(sample, sound)
    for way, (tokens, logprobs) in choices(op, logits.to(device)).items():
        assert ((tokens >= 0) & (tokens < vocab)).all(), way
        assert logprobs.isfinite().tolist() == good, (way, logprobs)
        assert torch.equal(tokens.cpu()[good], expected[way][0][good]), way
        torch.testing.assert_close(logprobs.cpu()[good], expected[way][1][good], atol=1e-5, rtol=1e-5)
