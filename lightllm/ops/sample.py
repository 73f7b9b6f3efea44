"""From logits to tokens: greedy choice, random choice by one uniform a row, log-probabilities.

Called by `backend/sampler.py` after penalties, biases and temperature. One order is fixed for every random choice, so
that equal logits and equal uniforms give equal tokens on every device, alone or in a batch:

- without a filter: the inverse of the distribution function over the vocabulary by token id;
- with a filter: over the kept tokens by descending logit, equal logits by token id.

A filter keeps the longest prefix of that descending order that satisfies all of: at most `top_k` tokens; the mass
before a token is below `top_p`; the probability is at least `min_p` times the largest. All three look at the
distribution over the whole vocabulary, as LightLLM's do. The result is exact for any vocabulary and any filter.

Logits that are no numbers: a row that holds NaN or +inf, or nothing but -inf, gets some token of the vocabulary, so that
nothing on the device reads out of bounds, and a log-probability that is not finite, which is how the host sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightllm.ops.torch import sample as torch_implementation

if TYPE_CHECKING:
    import torch


def greedy_tokens(logits: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """The most likely token of each row, the lowest id among equals, and 0 in the place of its log-probability, or NaN where
    the logits are no numbers. logits float32 [S, V]. Returns int64 [S], float32 [S]."""
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_implementation

        return triton_implementation.greedy_tokens(logits)
    return torch_implementation.greedy_tokens(logits)


def choose_greedy(logits: "torch.Tensor", scratch: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """The most likely token of each row, the lowest id among equals, and its log-probability.

    logits float32 [S, V]; scratch float32 [S, V], overwritten. Returns int64 [S], float32 [S].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_implementation

        return triton_implementation.choose_greedy(logits, scratch)
    return torch_implementation.choose_greedy(logits, scratch)


def choose_random(
    logits: "torch.Tensor", uniforms: "torch.Tensor", scratch: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """A token of each row from softmax(logits), and its log-probability.

    logits float32 [S, V]; uniforms float64 [S] in (0, 1); scratch float32 [S, V], overwritten.
    Returns int64 [S], float32 [S].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_implementation

        return triton_implementation.choose_random(logits, uniforms, scratch)
    return torch_implementation.choose_random(logits, uniforms, scratch)


def choose_filtered(
    logits: "torch.Tensor",
    uniforms: "torch.Tensor",
    top_k: "torch.Tensor",
    top_p: "torch.Tensor",
    min_p: "torch.Tensor",
    scratch: "torch.Tensor",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """A token of each row from softmax(logits) after the filters, and its log-probability before the filters.

    logits float32 [S, V]; uniforms float64 [S] in (0, 1); top_k int64 [S] >= 1 (V or more: no limit);
    top_p float64 [S] in (0, 1]; min_p float64 [S] in [0, 1]; scratch float32 [S, V], overwritten.
    Returns int64 [S], float32 [S].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_implementation

        return triton_implementation.choose_filtered(logits, uniforms, top_k, top_p, min_p, scratch)
    return torch_implementation.choose_filtered(logits, uniforms, top_k, top_p, min_p, scratch)


GREEDY, RANDOM, FILTERED = 0, 1, 2


def choose_rows(
    logits: "torch.Tensor",
    kinds: "torch.Tensor",
    scales: "torch.Tensor",
    uniforms: "torch.Tensor",
    top_k: "torch.Tensor",
    top_p: "torch.Tensor",
    min_p: "torch.Tensor",
    scratch: "torch.Tensor",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """A token of each row from softmax(logits * scale), as the row's kind says, and its log-probability there.

    kinds int32 [S]: GREEDY, RANDOM or FILTERED; scales float32 [S] above 0, the inverse temperatures; the others as for
    `choose_filtered`. Where a row's kind needs a parameter not, its value is ignored. Nothing waits for the device.
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_implementation

        return triton_implementation.choose_rows(
            logits, kinds, scales, uniforms, top_k, top_p, min_p, scratch
        )
    return torch_implementation.choose_rows(logits, kinds, scales, uniforms, top_k, top_p, min_p, scratch)


def token_logprobs(logits: "torch.Tensor", token_ids: "torch.Tensor") -> "torch.Tensor":
    """log softmax(logits)[token]: logits float32 [S, V], token_ids int64 [S]; returns float32 [S]."""
    return torch_implementation.token_logprobs(logits, token_ids)


def top_logprobs(logits: "torch.Tensor", count: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """The `count` most likely tokens of each row, best first, equal ones by token id, with log-probabilities.

    Which of several equal logits are left out at the cut is not specified.
    logits float32 [S, V]; count at most V. Returns int64 [S, count], float32 [S, count].
    """
    return torch_implementation.top_logprobs(logits, count)
