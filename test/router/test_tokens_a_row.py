"""Decode rows that bring several tokens in one round."""

from __future__ import annotations

import numpy as np
import pytest
from support.router_device import EOS, add_request, make_limits

from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import TopLogprobs
from lightllm.protocol.rounds import RoundResult
from lightllm.router.scheduler import Scheduler


def test_what_follows_an_end_token_in_a_round_is_discarded_and_its_slots_are_free():
    scheduler = Scheduler(make_limits(decode_tokens=4, disable_dynamic_prompt_cache=True))
    scheduler.add(add_request(1, [5, 6, 7], 20, stop_token_ids=[9]))
    scheduler.add(add_request(2, [5, 6, 7], 6))
    scheduler.next_round()
    scheduler.apply(RoundResult(0, int32([4, 4]), np.zeros(2, np.float32)))
    round_ = scheduler.next_round()
    assert round_.q_len.tolist() == [4, 4] and round_.kv_len.tolist() == [7, 7]
    assert scheduler.next_round() is None  # how long contexts are is not known before the result
    alternatives = {1: TopLogprobs([9], [-1.0]), 2: TopLogprobs([8], [-1.0]), 4: TopLogprobs([3], [-1.0])}
    logprobs = np.arange(6, dtype=np.float32)
    tokens = scheduler.apply(
        RoundResult(1, int32([6, 9, 8, 9, 3, EOS]), logprobs, top=alternatives, counts=int32([3, 3]))
    ).tokens
    assert tokens.request_ids == [1, 1, 2, 2, 2] and tokens.token_ids == [6, 9, 9, 3, EOS]
    assert tokens.logprobs == [0, 1, 3, 4, 5] and sorted(tokens.top) == [1, 3]
    assert [(f.request_id, f.reason, f.output_tokens) for f in tokens.finished] == [
        (1, "stop", 3),
        (2, "stop", 4),
    ]
    assert scheduler.snapshot().slots_used == 0
    scheduler.check_invariants()


def test_a_row_is_asked_for_no_more_tokens_than_it_may_generate_and_ends_by_length():
    scheduler = Scheduler(make_limits(decode_tokens=4))
    scheduler.add(add_request(1, [5, 6, 7], 4))
    scheduler.next_round()
    scheduler.apply(RoundResult(0, int32([4]), np.zeros(1, np.float32)))
    assert scheduler.next_round().q_len.tolist() == [3]
    scheduler.apply(RoundResult(1, int32([4]), np.zeros(1, np.float32), counts=int32([1])))
    scheduler.check_invariants()
    assert scheduler.snapshot().slots_used == 4
    assert scheduler.next_round().q_len.tolist() == [2]
    tokens = scheduler.apply(RoundResult(2, int32([4, 4]), np.zeros(2, np.float32), counts=int32([2]))).tokens
    assert [(f.reason, f.output_tokens) for f in tokens.finished] == [("length", 4)]


@pytest.mark.parametrize("counts", [[5], [0], [2, 1], [2]])
def test_counts_that_do_not_fit_the_round_are_no_valid_result(counts):
    scheduler = Scheduler(make_limits(decode_tokens=4))
    scheduler.add(add_request(1, [5, 6, 7], 20))
    scheduler.next_round()
    scheduler.apply(RoundResult(0, int32([4]), np.zeros(1, np.float32)))
    assert scheduler.next_round().q_len.tolist() == [4]
    tokens = [4] * (sum(counts) + (counts == [2]))
    result = RoundResult(1, int32(tokens), np.zeros(len(tokens), np.float32), counts=int32(counts))
    assert scheduler.apply(result).resync == 2
    scheduler.check_invariants()


def test_a_row_brings_several_tokens_beside_a_chunk_that_brings_none():
    scheduler = Scheduler(make_limits(decode_tokens=4))
    scheduler.add(add_request(1, [5, 6, 7], 20, stop_token_ids=[9]))
    scheduler.next_round()
    scheduler.apply(RoundResult(0, int32([4]), np.zeros(1, np.float32)))
    scheduler.add(add_request(2, list(range(20, 40)), 5))
    assert scheduler.next_round().samples.tolist() == [1, 0]
    scheduler.apply(RoundResult(1, int32([6, 7]), np.zeros(2, np.float32), counts=int32([2])))
    scheduler.abort(2)
    scheduler.next_round()
    tokens = scheduler.apply(RoundResult(2, int32([9]), np.zeros(1, np.float32), counts=int32([1]))).tokens
    assert [finish.output_tokens for finish in tokens.finished if finish.request_id == 1] == [4]
    node, known = scheduler._running.kv.cache.match(int32([5, 6, 7, 4, 6, 7, 9]))
    assert known == 6
