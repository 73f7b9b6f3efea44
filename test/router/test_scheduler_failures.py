"""Rounds that fail: undone and planned again, smaller after an out-of-memory, and given up for good after three times; and
single rows that the backend cannot go on with."""

from __future__ import annotations

import numpy as np
from support.router_device import Engine, add_request, generate_alone, make_limits

from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import RoundResult, RowError, first_seq
from lightllm.router.scheduler import Scheduler


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
    assert engine.scheduler.apply(RoundResult(0)).resync == 1
    assert engine.scheduler.in_flight == 0


def test_results_of_unknown_rounds_are_ignored():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 5))
    engine.plan()
    assert engine.scheduler.apply(RoundResult(99, int32([1]), np.zeros(1, np.float32))) == (None, None)
    assert engine.scheduler.in_flight == 1


# -- single rows


def test_a_row_that_cannot_go_on_ends_its_request_and_no_other():
    engine = Engine(make_limits())
    for i in range(3):
        engine.add(add_request(i, prompt(4, 10 * i + 1), 8, ignore_eos=True))
    for step in range(6):
        engine.plan()
        engine.plan()
        engine.execute(refuse=1 if step == 3 else None)
        engine.apply()
        engine.scheduler.check_invariants()
    (refused,) = engine.refused
    finish = engine.finished[refused[0]]
    assert (finish.reason, finish.error, finish.error_type) == ("error", "too complex", "InvalidParameter")
    assert finish.output_tokens == engine.refused[refused] > 0
    assert engine.scheduler.snapshot().running == 2
    engine.run()
    state = engine.scheduler.snapshot()
    assert (state.slots_used, state.aborted, state.finished) == (0, 1, 2)
    for i in {0, 1, 2} - {refused[0]}:
        assert engine.outputs[i] == generate_alone(prompt(4, 10 * i + 1), i, 0, 1000, 8)


def test_a_row_that_cannot_say_its_first_token_has_said_nothing():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(4), 8))
    engine.plan()
    engine.plan()
    engine.execute(refuse=0)
    engine.apply()
    assert engine.finished[1].output_tokens == 0 and engine.outputs[1] == []
    engine.run()  # the round behind it has the row as well
    assert engine.scheduler.snapshot().slots_used == 0


def test_an_error_of_a_row_that_has_left_is_ignored_even_if_another_one_has_it_now():
    engine = Engine(make_limits(running_max_req_size=1))
    engine.add(add_request(1, prompt(4), 8, ignore_eos=True))
    engine.add(add_request(2, prompt(3, 50), 5, ignore_eos=True))
    engine.plan()
    engine.scheduler.abort(1)
    engine.plan()  # request 2 in the same row
    engine.execute(refuse=0)
    engine.apply()
    assert 2 not in engine.finished
    engine.run()
    assert engine.finished[1].reason == "abort"
    assert engine.outputs[2] == generate_alone(prompt(3, 50), 2, 0, 1000, 5)


def test_an_error_behind_the_last_token_is_ignored():
    """What runs over says nothing to anybody."""
    engine = Engine(make_limits(), vocab=2)
    engine.add(add_request(1, prompt(4), 30))
    while 1 not in engine.finished:
        engine.plan()
        engine.plan()
        engine.execute()
        engine.apply()
    over = len(engine.rounds)
    assert over and engine.finished[1].reason == "stop"
    engine.execute(refuse=0)
    engine.apply()
    engine.run()
    assert engine.finished[1].reason == "stop"


def test_all_rows_of_a_round_may_have_errors():
    engine = Engine(make_limits())
    for i in range(3):
        engine.add(add_request(i, prompt(2, 10 * i + 1), 8, ignore_eos=True, regular_constraint="a*"))
    engine.plan()
    engine.execute()
    result = engine.results.popleft()
    count = len(result.token_ids)
    engine.results.append(
        RoundResult(
            result.seq,
            result.token_ids,
            result.logprobs,
            errors=dict.fromkeys(range(count), RowError("no", "row")),
        )
    )
    engine.apply()
    engine.run()
    assert count == 3 and {finish.reason for finish in engine.finished.values()} == {"error"}
    assert engine.scheduler.snapshot().slots_used == 0


def test_rounds_are_numbered_by_the_epoch_of_the_router():
    scheduler = Scheduler(make_limits(), epoch=3)
    scheduler.add(add_request(1, prompt(3), 5))
    assert scheduler.next_round().seq == first_seq(3)
    assert scheduler.apply(RoundResult(first_seq(2), int32([5]), np.zeros(1, np.float32))) == (None, None)
    assert scheduler.in_flight == 1
