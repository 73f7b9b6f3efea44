"""Rounds that fail: undone and planned again, smaller after an out-of-memory, and given up for good after three times."""

from __future__ import annotations

import numpy as np
from support.router_device import Engine, add_request, generate_alone, make_limits

from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import RoundResult


def prompt(length: int, start: int = 1) -> list[int]:
    return list(range(start, start + length))


def test_failed_round_is_undone_and_planned_again():
    engine = Engine(make_limits(chunked_prefill_size=4, batch_max_tokens=8))
    for i in range(3):
        engine.add(add_request(i, prompt(6, 10 * i + 1), 8, ignore_eos=True))
    for step in range(12):
        engine.plan()
        engine.plan()
        engine.execute("broken" if step % 4 == 2 else "")
        engine.apply()
        engine.scheduler.check_invariants()
    engine.run()
    for i in range(3):
        assert engine.outputs[i] == generate_alone(prompt(6, 10 * i + 1), i, 0, 1000, 8)


def test_leaves_of_an_undone_round_are_sent_again():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 2, ignore_eos=True))
    engine.run()
    engine.add(add_request(2, prompt(3), 5, ignore_eos=True))
    engine.plan()
    engine.execute("broken")
    engine.apply()
    engine.run()
    failed = next(i for i, r in enumerate(engine.sent) if r.leaves)
    assert engine.sent[failed].leaves == engine.sent[failed + 1].leaves == [0]
    assert [j.row for j in engine.sent[failed + 1].joins] == [0]


def test_round_that_fails_three_times_ends_only_its_own_requests():
    engine = Engine(make_limits(running_max_req_size=1))
    engine.add(add_request(1, prompt(3), 5, ignore_eos=True))
    engine.add(add_request(2, prompt(3, 9), 5, ignore_eos=True))
    for _ in range(3):
        engine.plan()
        engine.execute("broken")
        engine.apply()
        engine.execute()  # the resync
    assert engine.finished[1].reason == "error" and "broken" in engine.finished[1].error
    engine.run()
    assert engine.outputs[2] == generate_alone(prompt(3, 9), 2, 0, 1000, 5)


def test_out_of_memory_halves_the_rounds_until_they_succeed_for_a_while():
    engine = Engine(make_limits(max_total_token_num=1000, max_req_total_len=400, chunked_prefill_size=16))
    engine.add(add_request(1, prompt(100), 250, ignore_eos=True))
    engine.plan()
    engine.execute("memory")
    engine.apply()
    engine.run()
    sizes = [len(r.slots) for r in engine.sent]
    assert sizes[0] == 16 and max(sizes[1:]) == 8
    engine.add(add_request(2, prompt(100, 500), 2))
    engine.run()
    assert max(len(r.slots) for r in engine.sent[len(sizes) :]) == 16
    assert engine.outputs[1] == generate_alone(prompt(100), 1, 0, 1000, 250)


def test_siblings_enter_even_while_the_token_budget_is_reduced():
    engine = Engine(make_limits(batch_max_tokens=2, chunked_prefill_size=1))
    engine.add(add_request(1, prompt(1), 1))
    engine.plan()
    engine.execute("memory")
    engine.apply()
    engine.add(add_request([2, 3], prompt(1), 3, n=2, ignore_eos=True))
    engine.run()
    assert len(engine.finished) == 3


def test_more_decode_rows_than_a_reduced_budget_take_turns():
    engine = Engine(make_limits(max_total_token_num=400, batch_max_tokens=8, chunked_prefill_size=8))
    for i in range(8):
        engine.add(add_request(i, prompt(1, i + 1), 20, ignore_eos=True))
    engine.plan()
    engine.execute()
    engine.apply()
    engine.plan()
    engine.execute("memory")
    engine.apply()
    engine.run()
    assert max(len(r.slots) for r in engine.sent[2:20]) == 4
    for i in range(8):
        assert engine.outputs[i] == generate_alone([i + 1], i, 0, 1000, 20)


def test_result_with_too_few_tokens_is_treated_as_failed():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 5))
    engine.plan()
    engine.scheduler.apply(RoundResult(0, int32([]), np.zeros(0, np.float32)))
    assert engine.scheduler.take_resync() == 1 and engine.scheduler.take_resync() is None
    assert engine.scheduler.in_flight == 0


def test_results_of_unknown_rounds_are_ignored():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 5))
    engine.plan()
    assert engine.scheduler.apply(RoundResult(99, int32([1]), np.zeros(1, np.float32))) is None
    assert engine.scheduler.in_flight == 1 and engine.scheduler.take_resync() is None
