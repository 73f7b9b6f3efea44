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

import numpy as np
import torch

from lightllm.ops.cpu import greedy_tokens as cpu_impl

_CANDIDATES = 512
"""Largest logits of a row that a filter looks at first; where it keeps them all it looks at more."""
_WIDENING = 8
_BLOCK = 128
"""Tokens whose probabilities are summed together in the two-level search for a random token."""


def greedy_tokens(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row, the lowest id among equals, and 0 in the place of its log-probability, or NaN where
    the logits are no numbers. logits [S, V], on a GPU float32. Returns int64 [S], float32 [S]."""
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_impl

        return triton_impl.greedy_tokens(logits)
    result = cpu_impl.greedy_tokens(logits)
    if result is not None:
        return result
    logits = logits.float()
    token_ids = _most_likely(logits)
    peaks = logits.gather(1, token_ids[:, None]).squeeze(1)
    return token_ids, peaks - peaks


def sample_greedy(logits: torch.Tensor, scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row, the lowest id among equals, and its log-probability.

    logits float32 [S, V]; scratch float32 [S, V], overwritten. Returns int64 [S], float32 [S].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_impl

        return triton_impl.sample_greedy(logits, scratch)
    token_ids = _most_likely(logits)
    probabilities = torch.softmax(logits, dim=1, out=scratch)
    return token_ids, probabilities.gather(1, token_ids[:, None]).squeeze(1).log_()


def sample_random(
    logits: torch.Tensor, uniforms: torch.Tensor, scratch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row from softmax(logits), and its log-probability.

    logits float32 [S, V]; uniforms float64 [S] in (0, 1); scratch float32 [S, V], overwritten.
    Returns int64 [S], float32 [S].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_impl

        return triton_impl.sample_random(logits, uniforms, scratch)
    probabilities = torch.softmax(logits, dim=1, out=scratch)
    vocab_size = logits.shape[1]
    whole = vocab_size // _BLOCK * _BLOCK
    masses = probabilities[:, :whole].unflatten(1, (-1, _BLOCK)).sum(2)
    if whole < vocab_size:
        masses = torch.cat([masses, probabilities[:, whole:].sum(1, keepdim=True)], dim=1)
    block, within = _search(masses, uniforms * masses.sum(1, dtype=torch.float64))
    # The last block may be short: its positions past the vocabulary repeat the last token with no mass.
    positions = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    inside = positions < vocab_size
    mass = probabilities.gather(1, positions.clamp_(max=vocab_size - 1)) * inside
    offset, _ = _search(mass, within)
    token_ids = positions.gather(1, offset[:, None])
    return token_ids.squeeze(1), probabilities.gather(1, token_ids).squeeze(1).log_()


def sample_filtered(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    scratch: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row from softmax(logits) after the filters, and its log-probability before the filters.

    logits float32 [S, V]; uniforms float64 [S] in (0, 1); top_k int64 [S] >= 1 (V or more: no limit);
    top_p float64 [S] in (0, 1]; min_p float64 [S] in [0, 1]; scratch float32 [S, V], overwritten.
    Returns int64 [S], float32 [S].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_impl

        return triton_impl.sample_filtered(logits, uniforms, top_k, top_p, min_p, scratch)
    normalizer = _logsumexp(logits, scratch)
    chosen = torch.empty_like(normalizer)
    rank = torch.empty_like(top_k)
    rows, part = torch.arange(logits.shape[0], device=logits.device), logits
    bound = _CANDIDATES
    while True:
        bound = min(bound, logits.shape[1])
        values = _largest(part, bound)
        mass, kept = _filter(values, normalizer[rows], top_k[rows], top_p[rows], min_p[rows])
        chosen[rows], rank[rows] = _choose_value(values, mass, uniforms[rows])
        # A row whose candidates were all kept by top_p or min_p might have kept more: look further.
        cut_short = (kept == bound) & (top_k[rows] > bound)
        if bound == logits.shape[1] or not cut_short.any():
            return _find(logits, chosen, rank), chosen - normalizer
        rows = rows[cut_short]
        part = logits[rows]
        bound *= _WIDENING


GREEDY, RANDOM, FILTERED = 0, 1, 2


def sample_rows(
    logits: torch.Tensor,
    kinds: torch.Tensor,
    scales: torch.Tensor,
    uniforms: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    scratch: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row from softmax(logits * scale), as the row's kind says, and its log-probability there.

    kinds int32 [S]: GREEDY, RANDOM or FILTERED; scales float32 [S] above 0, the inverse temperatures; the others as for
    `sample_filtered`. Where a row's kind needs a parameter not, its value is ignored. Nothing waits for the device.
    """
    if logits.is_cuda:
        from lightllm.ops.triton import sample as triton_impl

        return triton_impl.sample_rows(logits, kinds, scales, uniforms, top_k, top_p, min_p, scratch)
    token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    scaled = logits * scales[:, None]
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero().squeeze(1)
        part, space = scaled[rows], scratch[: len(rows)]
        if kind == 0:
            chosen = sample_greedy(part, space)
        elif kind == 1:
            chosen = sample_random(part, uniforms[rows], space)
        else:
            chosen = sample_filtered(part, uniforms[rows], top_k[rows], top_p[rows], min_p[rows], space)
        token_ids[rows], logprobs[rows] = chosen
    return token_ids, logprobs


def token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[token]: logits float32 [S, V], token_ids int64 [S]; returns float32 [S]."""
    return logits.gather(1, token_ids[:, None]).squeeze(1) - logits.logsumexp(1)


def top_logprobs(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` most likely tokens of each row, best first, equal ones by token id, with log-probabilities.

    Which of several equal logits are left out at the cut is not specified.
    logits float32 [S, V]; count at most V. Returns int64 [S, count], float32 [S, count].
    """
    values, token_ids = logits.topk(count, dim=1)
    token_ids, by_id = token_ids.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return token_ids.gather(1, by_value), values - logits.logsumexp(1, keepdim=True)


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    """int64 [S]: the lowest index of the largest logit; NaN counts as the largest."""
    if logits.device.type != "cpu":
        return logits.argmax(1)
    return torch.from_numpy(logits.numpy().argmax(1))


def _filter(
    values: torch.Tensor,
    normalizer: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities float64 of the sorted `values`, 0 where filtered out, and how many are kept."""
    mass = (values - normalizer[:, None]).double().exp_()
    kept = mass.cumsum(1).sub_(mass) < top_p[:, None]
    kept &= mass >= min_p[:, None] * mass[:, :1]
    kept &= torch.arange(values.shape[1], device=values.device) < top_k[:, None]
    kept[:, 0] = True
    return mass.mul_(kept), kept.sum(1)


def _choose_value(
    values: torch.Tensor, mass: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logit that each uniform falls on, and its rank among equal logits."""
    index, _ = _search(mass, uniforms * mass.sum(1))
    chosen = values.gather(1, index[:, None])
    return chosen.squeeze(1), index - (values > chosen).sum(1)


def _search(mass: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first index of each row where the running sum exceeds `target`, never one without mass; and how far the
    target lies beyond the sum before it. mass [S, n], target float64 [S]."""
    sums = mass.cumsum(1, dtype=torch.float64)
    with_mass = torch.arange(mass.shape[1], device=mass.device) * (mass > 0)
    index = torch.minimum((sums <= target[:, None]).sum(1), with_mass.amax(1))
    before = sums.gather(1, index[:, None]) - mass.gather(1, index[:, None])
    return index, (target - before.squeeze(1)).clamp_(min=0.0)


def _logsumexp(logits: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """torch's softmax is one fused, threaded pass; its logsumexp is four."""
    if logits.device.type != "cpu":
        return logits.logsumexp(1)
    return logits.amax(1) - torch.softmax(logits, dim=1, out=scratch).amax(1).log_()


def _largest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest values of each row, descending: [S, count]."""
    if logits.device.type != "cpu":
        return logits.topk(count, dim=1).values
    array = logits.numpy()
    size = array.shape[1]
    if count < size:
        array = np.partition(array, size - count, axis=1)[:, size - count :]
    return torch.from_numpy(np.ascontiguousarray(np.sort(array, axis=1)[:, ::-1]))


def _find(logits: torch.Tensor, value: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """The token id of each row's occurrence number `rank` of `value`. value [S], rank int64 [S]; int64 [S]."""
    equal = logits == value[:, None]
    if logits.device.type != "cpu":
        return (equal & (equal.cumsum(1) == rank[:, None] + 1)).int().argmax(1)
    found = torch.from_numpy(equal.numpy().argmax(1))
    for row in rank.nonzero().squeeze(1).tolist():
        found[row] = equal[row].nonzero()[rank[row], 0]
    return found
