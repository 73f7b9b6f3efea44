"""The sampler with masks: what a constrained row may say, with what probability, beside all other parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend.test_sampler import GREEDY, VOCAB, Bench, alternatives, make_logits

from lightllm.backend.constraint_masks import RoundMasks

PATTERN = {"regular_constraint": "a"}


def masks_of(*allowed):
    """One row of bits for each list of token ids."""
    bits = np.zeros((len(allowed), -(-VOCAB // 32) * 32), np.uint8)
    for row, token_ids in zip(bits, allowed, strict=True):
        row[token_ids] = 1
    return RoundMasks(np.packbits(bits, axis=1, bitorder="little").view(np.int32), {})


def only(logits, allowed):
    kept = torch.full_like(logits, -torch.inf)
    kept[allowed] = logits[allowed]
    return kept


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_of_what_may_come_and_raw_ones_of_everything(raw, temperature):
    """As those of a penalised row: raw ones are of the untouched logits."""
    bench, logits, allowed = Bench(), make_logits(), list(range(5, 200, 7))
    bench.join(2, temperature=temperature, logprobs=4, raw_logprobs=raw, **PATTERN)
    sampled = bench.step(logits, [2], [0], masks_of(allowed))
    token = int(sampled.token_ids[0])
    assert token in allowed
    possible = logits[0] if raw else only(logits[0], allowed) / (temperature or 1.0)
    expected = possible.log_softmax(0)
    assert sampled.logprobs[0].item() == pytest.approx(expected[token].item(), abs=1e-4)
    top = alternatives(sampled)[0]
    assert top.token_ids == expected.topk(4).indices.tolist()
    np.testing.assert_allclose(top.logprobs, expected.topk(4).values, atol=1e-4)


def test_fewer_alternatives_than_asked_for_where_fewer_tokens_may_come():
    bench = Bench()
    bench.join(0, **GREEDY, logprobs=5, **PATTERN)
    assert sorted(alternatives(bench.step(make_logits(), [0], [0], masks_of([8, 150])))[0].token_ids) == [
        8,
        150,
    ]


def test_only_the_rows_of_the_masks_are_bound():
    bench = Bench()
    for row in range(5):
        bench.join(row, **GREEDY, **(PATTERN if row in (1, 4) else {}))
    logits = make_logits(5)
    tokens = bench.step(logits, [4, 0, 1, 2, 3], [0] * 5, masks_of([3, 4], [9])).token_ids.tolist()
    free = logits.argmax(1).tolist()
    assert tokens == [3 if logits[0, 3] > logits[0, 4] else 4, free[1], 9, free[3], free[4]]


def test_penalties_and_biases_choose_among_what_may_come():
    bench, logits = Bench(), torch.zeros(1, VOCAB)
    logits[0, [10, 11, 12, 13]] = torch.tensor([5.0, 4.5, 4.0, 9.0])
    bench.join(0, [1, 10, 10], 1, **GREEDY, frequency_penalty=1.0, logit_bias={13: 50.0, 12: 0.3}, **PATTERN)
    said = [int(bench.step(logits, [0], [2 + n], masks_of([10, 11, 12])).token_ids[0]) for n in range(4)]
    assert said == [11, 12, 11, 12]  # 10 has been said twice; 13 may not come for all its bias


def test_an_end_that_must_not_come_yet_comes_where_nothing_else_may():
    """`min_new_tokens` beside a constraint that is fulfilled: the output ends, and no row becomes nonsense."""
    bench, logits = Bench(), make_logits()
    bench.join(0, eos=[2, 3], **GREEDY, min_new_tokens=10, logprobs=0, **PATTERN)
    assert bench.step(logits, [0], [1], masks_of([2, 3, 40])).token_ids[0] == 40
    sampled = bench.step(logits, [0], [1], masks_of([2, 3]))
    assert int(sampled.token_ids[0]) in (2, 3) and torch.isfinite(sampled.logprobs).all()
    bench.join(1, eos=[2, 3], temperature=0.8, top_p=0.9, min_new_tokens=10, **PATTERN)
    sampled = bench.step(logits, [1], [1], masks_of([3]))
    assert sampled.token_ids[0] == 3 and sampled.logprobs[0].item() == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {}])
def test_filters_look_at_what_may_come_alone(params):
    """The most likely tokens of all may not come: the nucleus is that of the others."""
    bench, logits = Bench(), make_logits()
    allowed = logits[0].topk(60).indices[40:].tolist()
    possible = only(logits[0], allowed).softmax(0)
    keep = set(allowed)
    order = possible.argsort(descending=True).tolist()
    if "top_k" in params:
        keep = set(order[:3])
    if "top_p" in params:
        keep = set(order[: int((possible[order].cumsum(0) < 0.5).sum()) + 1])
    if "min_p" in params:
        keep = {i for i in allowed if possible[i] >= 0.3 * possible.max()}
    said = set()
    for seed in range(200):
        bench.join(0, seed=seed, temperature=1.0, **params, **PATTERN)
        said.add(int(bench.step(logits, [0], [0], masks_of(allowed)).token_ids[0]))
    assert said <= keep and len(said) > len(keep) // 2
