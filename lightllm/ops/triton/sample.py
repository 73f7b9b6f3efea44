"""From logits to tokens, one program a row, in the order that `ops/sample.py` fixes: greedy, random, filtered, or each row
as it says. The search for a filtered token is in `sample_filtered.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm.ops.triton.launch import cdiv, launch_config, next_power_of_2
from lightllm.ops.triton.sample_filtered import sample_filtered_token
from lightllm.ops.triton.sample_row import load_block, row_mass

GREEDY, RANDOM, FILTERED, EACH = 0, 1, 2, 3


@triton.jit
def sample_kernel(
    logits_ptr, scratch_ptr, kinds_ptr, scales_ptr, uniforms_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    tokens_ptr, logprobs_ptr, stride, scratch_stride, vocab,
    KIND: tl.constexpr, SCALED: tl.constexpr, LOGPROBS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """tokens[s], logprobs[s] from logits[s] * scales[s]. Grid (S,).

    A row is read in blocks of ROWS * COLUMNS; SUMS >= ceil(vocab / (ROWS * COLUMNS)), a power of two. KIND 3: kinds[s].
    Without LOGPROBS a greedy row is read once, and its log-probability is 0. Where the logits are no numbers it is NaN: the
    mass of such a row is.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    scale = 1.0
    if SCALED:
        scale = tl.load(scales_ptr + row)
    silent: tl.constexpr = KIND == 0 and not LOGPROBS
    peak, token, nothing = _largest(logits_ptr, vocab, scale, silent, ROWS, COLUMNS)
    if KIND == 3:
        kind = tl.load(kinds_ptr + row)
        scratch_ptr += row * scratch_stride
        if kind == 1:
            uniform = tl.load(uniforms_ptr + row)
            token, total = _random(logits_ptr, scratch_ptr, vocab, scale, peak, uniform, ROWS, COLUMNS, SUMS)
        elif kind == 2:
            token, total = sample_filtered_token(
                logits_ptr, scratch_ptr, vocab, scale, peak,
                uniforms_ptr + row, top_k_ptr + row, top_p_ptr + row, min_p_ptr + row, ROWS, COLUMNS,
            )  # fmt: skip
        else:
            total = row_mass(logits_ptr, vocab, scale, peak, ROWS, COLUMNS)
    elif KIND == 2:
        scratch_ptr += row * scratch_stride
        token, total = sample_filtered_token(
            logits_ptr, scratch_ptr, vocab, scale, peak,
            uniforms_ptr + row, top_k_ptr + row, top_p_ptr + row, min_p_ptr + row, ROWS, COLUMNS,
        )  # fmt: skip
    elif KIND == 1:
        scratch_ptr += row * scratch_stride
        uniform = tl.load(uniforms_ptr + row)
        token, total = _random(logits_ptr, scratch_ptr, vocab, scale, peak, uniform, ROWS, COLUMNS, SUMS)
    tl.store(tokens_ptr + row, token.to(tl.int64))
    if silent:
        tl.store(logprobs_ptr + row, nothing)
    else:
        if KIND == 0:
            total = row_mass(logits_ptr, vocab, scale, peak, ROWS, COLUMNS)
        logprob = tl.load(logits_ptr + token) * scale - peak - tl.log(total).to(tl.float32)
        tl.store(logprobs_ptr + row, logprob)


@triton.jit
def _largest(row_ptr, vocab, scale, CHECKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(largest logit, the lowest id that has it, 0 or with CHECKED NaN if the logits are no numbers). Maxima pass over NaN."""
    best = tl.full((COLUMNS,), float("-inf"), tl.float32)
    where = tl.zeros((COLUMNS,), tl.int32)
    nothing = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, vocab, ROWS * COLUMNS):
        index, x = load_block(row_ptr, start, vocab, scale, ROWS, COLUMNS)
        top = tl.max(x, 0)
        first = tl.min(tl.where(x == top[None, :], index, vocab), 0)
        where = tl.where(top > best, first, where)
        best = tl.maximum(best, top)
        if CHECKED:
            nothing += tl.sum(tl.where(x != x, x, 0.0), 0)
    peak = tl.max(best, 0)
    token = tl.min(tl.where(best == peak, where, vocab - 1), 0)
    return peak, token, tl.sum(nothing, 0) + (peak - peak)


@triton.jit
def _random(
    row_ptr, scratch_ptr, vocab, scale, peak, uniform,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The first id at which the running mass exceeds uniform * all of it, and all of it (float64, peak's mass is 1)."""
    size: tl.constexpr = ROWS * COLUMNS
    for start in range(0, vocab, size):
        _, x = load_block(row_ptr, start, vocab, scale, ROWS, COLUMNS)
        tl.store(scratch_ptr + start // size, tl.sum(tl.sum(tl.exp(x - peak), 0), 0))
    tl.debug_barrier()
    number = tl.arange(0, SUMS)
    sums = tl.load(scratch_ptr + number, mask=number * size < vocab, other=0.0)
    total = tl.sum(sums.to(tl.float64), 0)
    block, within = _search(sums, number, uniform * total)
    column = tl.arange(0, size)
    index = block * size + column
    x = tl.load(row_ptr + index, mask=index < vocab, other=float("-inf")) * scale
    offset, _ = _search(tl.exp(x - peak), column, within)
    return tl.minimum(block * size + offset, vocab - 1), total


@triton.jit
def _search(mass, index, target):
    """The first index where the running sum of `mass` exceeds `target`, never one without mass; and how far the target
    lies beyond the sum before it."""
    sums = tl.cumsum(mass.to(tl.float64), 0)
    last = tl.max(tl.where(mass > 0, index, 0), 0)
    found = tl.minimum(tl.sum((sums <= target).to(tl.int32), 0), last)
    before = tl.sum(tl.where(index == found, sums - mass, 0.0), 0)
    return found, tl.maximum(target - before, 0.0)


def greedy_tokens(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch(logits, GREEDY, logprobs=False)


def sample_greedy(logits: torch.Tensor, scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch(logits, GREEDY)


def sample_random(
    logits: torch.Tensor, uniforms: torch.Tensor, scratch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch(logits, RANDOM, scratch, uniforms=uniforms)


def sample_filtered(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    scratch: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch(logits, FILTERED, scratch, uniforms=uniforms, top_k=top_k, top_p=top_p, min_p=min_p)


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
    return _launch(
        logits, EACH, scratch, kinds=kinds, scales=scales, uniforms=uniforms, top_k=top_k, top_p=top_p, min_p=min_p
    )  # fmt: skip


def _launch(
    logits: torch.Tensor,
    kind: int,
    scratch: torch.Tensor | None = None,
    logprobs: bool = True,
    **parameters: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    count, vocab = logits.shape
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    values = torch.empty(count, dtype=torch.float32, device=logits.device)
    if count == 0:
        return tokens, values
    assert logits.dtype == torch.float32 and logits.stride(1) == 1
    assert scratch is None or scratch.stride(1) == 1
    assert all(parameter.is_contiguous() for parameter in parameters.values())
    config = launch_config("sample", logits.device, vocab=vocab)
    names = ("kinds", "scales", "uniforms", "top_k", "top_p", "min_p")
    sample_kernel[(count,)](
        logits, scratch, *(parameters.get(name) for name in names), tokens, values,
        logits.stride(0), 0 if scratch is None else scratch.stride(0), vocab,
        KIND=kind, SCALED="scales" in parameters, LOGPROBS=logprobs, SUMS=_sums(vocab, config), **config,
    )  # fmt: skip
    return tokens, values


def _sums(vocab: int, config: dict[str, int]) -> int:
    return next_power_of_2(cdiv(vocab, config["ROWS"] * config["COLUMNS"]))
