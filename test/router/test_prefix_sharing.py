"""Sharing prefixes, rule by rule, against a device that checks every context it reads."""

from __future__ import annotations

import pytest
from support.router_device import EOS, Engine, add_request, generate_alone, make_limits

from lightllm.router.admission.schedule_policy import Aggressive


def prompt(length: int, start: int = 1) -> list[int]:
    return list(range(start, start + length))


def roomy(**changes) -> Engine:
    values = {
        "max_total_token_num": 400,
        "max_req_total_len": 200,
        "batch_max_tokens": 64,
        "chunked_prefill_size": 32,
    }
    return Engine(make_limits(**(values | changes)))


def step(engine: Engine) -> None:
    engine.plan()
    engine.execute()
    engine.apply()
    engine.scheduler.check_invariants()


def computed(engine: Engine, since: int = 0) -> int:
    """Prompt tokens sent to the device from round number `since` on."""
    return sum(len(r.token_ids) for r in engine.sent[since:])


def assert_answers(engine: Engine, prompts: dict[int, list[int]], new: int) -> None:
    for request_id, tokens in prompts.items():
        assert engine.outputs[request_id] == generate_alone(tokens, request_id, 0, 1000, new)


def test_a_prompt_is_computed_once_and_its_last_token_always():
    engine = roomy()
    engine.add(add_request(1, prompt(20), 3, ignore_eos=True))
    engine.run()
    engine.add(add_request(2, prompt(20), 3, ignore_eos=True))
    engine.run()
    assert computed(engine) == 21
    assert engine.finished[1].cached_tokens == 0 and engine.finished[2].cached_tokens == 19
    assert engine.cached_tokens == {2: 19}
    assert_answers(engine, {1: prompt(20), 2: prompt(20)}, 3)


def test_a_prefix_is_shared_while_its_first_round_is_still_in_flight():
    engine = roomy()
    engine.add(add_request(1, prompt(20), 5, ignore_eos=True))
    engine.plan()
    engine.add(add_request(2, prompt(20) + [99], 5, ignore_eos=True))
    engine.plan()
    assert engine.scheduler.in_flight == 2
    assert len(engine.sent[1].token_ids) == 1 and len(engine.sent[1].joins[0].prefix_slots) == 20
    engine.run()
    assert_answers(engine, {1: prompt(20), 2: prompt(20) + [99]}, 5)


def test_same_prefix_twice_in_one_round_the_second_waits_and_shares():
    engine = roomy(worth_waiting=8)
    prompts = {1: prompt(20), 2: prompt(15) + [90, 91], 3: prompt(30, 500)}
    for i, tokens in prompts.items():
        engine.add(add_request(i, tokens, 4, ignore_eos=True))
    engine.run()
    assert [len(r.token_ids) for r in engine.sent[:2]] == [20 + 30, 2]  # the third one did not wait
    assert engine.finished[2].cached_tokens == 15
    assert_answers(engine, prompts, 4)


def test_a_short_common_prefix_is_computed_twice_and_freed_once():
    engine = roomy(worth_waiting=8)
    prompts = {1: prompt(7) + [80], 2: prompt(7) + [90], 3: prompt(7) + [80]}
    for i, tokens in prompts.items():
        engine.add(add_request(i, tokens, 4, ignore_eos=True))
    engine.plan()
    assert [len(r.token_ids) for r in engine.sent] == [24]
    engine.scheduler.check_invariants()
    engine.run()
    assert_answers(engine, prompts, 4)
    # prompts of 8 and 3 outputs with KV each; seven prompt tokens are the same, the eighth is for two of them
    assert engine.scheduler.snapshot().slots_cached == 7 + 1 + 1 + 9


def test_a_long_prompt_is_followed_chunk_by_chunk():
    """The second request waits as long as the first one computes what it needs, then has all but its last token."""
    engine = roomy(chunked_prefill_size=16)
    for i in (1, 2):
        engine.add(add_request(i, prompt(100), 3, ignore_eos=True))
    engine.run()
    assert computed(engine) == 101 and engine.finished[2].cached_tokens == 99
    assert_answers(engine, {1: prompt(100), 2: prompt(100)}, 3)


def test_who_waits_goes_on_alone_when_the_other_one_is_aborted():
    engine = roomy(chunked_prefill_size=16)
    for i in (1, 2):
        engine.add(add_request(i, prompt(100), 3, ignore_eos=True))
    step(engine)
    step(engine)
    engine.scheduler.abort(1)
    engine.take(engine.scheduler.drain_outputs())
    engine.run()
    assert computed(engine) == 100 and engine.finished[2].cached_tokens == 32
    assert_answers(engine, {2: prompt(100)}, 3)


def test_a_chunk_boundary_inside_a_shared_prefix_is_no_boundary_for_others():
    engine = roomy(chunked_prefill_size=16)
    engine.add(add_request(1, prompt(40), 3, ignore_eos=True))
    engine.run()
    engine.add(add_request(2, prompt(25) + [99] * 30, 3, ignore_eos=True))
    engine.run()
    assert engine.finished[2].cached_tokens == 25
    assert engine.outputs[2] == generate_alone(prompt(25) + [99] * 30, 2, 0, 1000, 3)


def test_siblings_compute_their_prompt_once():
    engine = roomy(worth_waiting=1000)
    engine.add(add_request([1, 2, 3, 4], prompt(20), 5, n=4, ignore_eos=True))
    engine.run()
    assert [len(r.token_ids) for r in engine.sent[:2]] == [20, 3]
    assert [engine.finished[i].cached_tokens for i in (1, 2, 3, 4)] == [0, 19, 19, 19]
    for index, i in enumerate((1, 2, 3, 4)):
        assert engine.outputs[i] == generate_alone(prompt(20), 1, index, 1000, 5)


def test_generated_tokens_are_cached_for_the_next_turn_but_for_the_last_one():
    engine = roomy()
    engine.add(add_request(1, prompt(10), 6, ignore_eos=True))
    engine.run()
    turn = prompt(10) + engine.outputs[1] + [77]
    engine.add(add_request(2, turn, 3, ignore_eos=True))
    engine.run()
    assert engine.finished[2].cached_tokens == 15
    assert engine.outputs[2] == generate_alone(turn, 2, 0, 1000, 3)


def test_the_token_that_ran_over_behind_an_eos_is_not_cached():
    seed = next(s for s in range(2000) if generate_alone(prompt(3), s, 0, 1000, 2)[1] == EOS)
    engine = roomy()
    engine.add(add_request(1, prompt(3), 30, seed=seed))
    engine.run()
    assert engine.finished[1].output_tokens == 2 and len(engine.sent) == 3
    assert engine.scheduler.snapshot().slots_cached == 4  # the prompt and the first output; the EOS ran over
    engine.scheduler.check_invariants()


@pytest.mark.parametrize("rounds", range(8))
def test_an_abort_at_any_time_leaves_only_what_has_been_computed(rounds):
    """Also in the round in which the request finishes: the eighth is never planned."""
    engine = roomy(chunked_prefill_size=8)
    engine.add(add_request(1, prompt(20), 5, ignore_eos=True))
    for _ in range(rounds):
        step(engine)
    engine.plan()
    engine.scheduler.abort(1)
    engine.take(engine.scheduler.drain_outputs())
    engine.scheduler.check_invariants()
    engine.run()
    assert engine.scheduler.snapshot().slots_used == 0
    again = prompt(20) + generate_alone(prompt(20), 1, 0, 1000, 5)
    engine.add(add_request(2, again, 5, ignore_eos=True))  # reads everything that was kept
    engine.run()
    assert_answers(engine, {2: again}, 5)


def test_a_failed_round_takes_its_prefix_back_from_those_who_share_it():
    engine = roomy()
    engine.add(add_request(1, prompt(20), 5, ignore_eos=True))
    engine.plan()
    engine.add(add_request(2, prompt(20) + [99], 5, ignore_eos=True))
    engine.plan()
    engine.execute("broken")
    engine.apply()
    engine.scheduler.check_invariants()
    state = engine.scheduler.snapshot()
    assert (state.slots_used, state.slots_cached) == (0, 0)
    engine.run()
    assert_answers(engine, {1: prompt(20), 2: prompt(20) + [99]}, 5)
    assert engine.finished[2].cached_tokens == 20


def test_a_round_behind_a_failed_one_loses_only_what_was_not_confirmed():
    engine = roomy(chunked_prefill_size=8)
    engine.add(add_request(1, prompt(30), 5, ignore_eos=True))
    step(engine)
    engine.plan()
    engine.execute("broken")
    engine.apply()
    assert engine.scheduler.snapshot().slots_used == 8
    engine.run()
    assert computed(engine, since=2) == 22
    assert_answers(engine, {1: prompt(30)}, 5)


def test_evicted_slots_are_written_in_the_very_next_round():
    engine = Engine(make_limits(max_total_token_num=24, max_req_total_len=24))
    for i in range(1, 9):
        engine.add(add_request(i, prompt(10, 20 * i), 8, ignore_eos=True))
    engine.run()
    for i in range(1, 9):
        assert engine.outputs[i] == generate_alone(prompt(10, 20 * i), i, 0, 1000, 8)
    assert engine.scheduler.snapshot().paused == 0


def test_a_lone_request_of_the_whole_memory_evicts_everything_else():
    engine = Engine(make_limits(max_total_token_num=40, max_req_total_len=40))
    engine.add(add_request(1, prompt(30), 10, ignore_eos=True))
    engine.run()
    engine.add(add_request(2, prompt(30, 500), 10, ignore_eos=True))
    engine.run()
    assert engine.outputs[2] == generate_alone(prompt(30, 500), 2, 0, 1000, 10)


def test_a_paused_request_resumes_by_computing_only_what_was_evicted():
    engine = Engine(
        make_limits(max_total_token_num=40, max_req_total_len=40, chunked_prefill_size=16),
        policy=Aggressive(),
    )
    for i in (1, 2):
        engine.add(add_request(i, prompt(10, 50 * i), 15, ignore_eos=True))
    paused = False
    while engine.scheduler.has_work:
        step(engine)
        paused |= engine.scheduler.snapshot().paused > 0
    assert paused
    assert_answers(engine, {1: prompt(10, 50), 2: prompt(10, 100)}, 15)
    assert computed(engine) < 10 + 10 + 15
    assert [engine.finished[i].cached_tokens for i in (1, 2)] == [0, 0]  # it had computed its prompt itself


def test_cached_tokens_stay_as_reported_when_a_resumed_request_has_its_round_undone():
    """It is the device of the tests that refuses a second count."""
    engine = Engine(
        make_limits(max_total_token_num=40, max_req_total_len=40, chunked_prefill_size=16),
        policy=Aggressive(),
    )
    prompts = {1: prompt(6, 50), 2: prompt(10, 500), 3: prompt(10, 50)}
    engine.add(add_request(1, prompts[1], 2, ignore_eos=True))
    engine.run()
    for i in (2, 3):
        engine.add(add_request(i, prompts[i], 15, ignore_eos=True))
    while not engine.scheduler.snapshot().paused:
        step(engine)
    assert engine.cached_tokens == {3: 6}
    engine.scheduler.flush_cache()  # so that it has to compute its prompt again
    while not (engine.rounds and any(join.seed == 3 for join in engine.rounds[0].joins)):
        engine.execute()
        engine.apply()
        engine.plan()
    engine.execute("broken")
    engine.run()
    assert_answers(engine, {2: prompts[2], 3: prompts[3]}, 15)
    assert engine.finished[3].cached_tokens == 6


def test_prompt_logprobs_are_computed_from_the_first_token():
    engine = roomy()
    engine.add(add_request(1, prompt(20), 2, ignore_eos=True))
    engine.run()
    rounds = len(engine.sent)
    engine.add(add_request(2, prompt(20), 2, ignore_eos=True, prompt_logprobs=0))
    engine.run()
    assert computed(engine, rounds) == 20 and engine.finished[2].cached_tokens == 0


def test_cached_slots_count_neither_as_used_nor_against_admission():
    engine = Engine(make_limits(max_total_token_num=40, max_req_total_len=40, batch_max_tokens=64))
    engine.add(add_request(1, prompt(20), 10, ignore_eos=True))
    engine.run()
    state = engine.scheduler.snapshot()
    assert (state.slots_used, state.slots_cached) == (0, 29)
    for i in (2, 3):
        engine.add(add_request(i, prompt(10, 100 * i), 5, ignore_eos=True))
    engine.plan()
    assert engine.scheduler.snapshot().running == 2


def test_flush_empties_what_nobody_reads():
    engine = roomy()
    engine.add(add_request(1, prompt(20), 3, ignore_eos=True))
    engine.run()
    engine.add(add_request(2, prompt(10) + [99], 10, ignore_eos=True))
    step(engine)
    assert engine.scheduler.flush_cache() == 22 - 10
    engine.scheduler.check_invariants()
    engine.run()
    assert engine.outputs[2] == generate_alone(prompt(10) + [99], 2, 0, 1000, 10)
    assert engine.scheduler.flush_cache() == 20 and engine.scheduler.snapshot().slots_cached == 0


def test_without_the_cache_every_prompt_is_computed_and_every_slot_is_freed():
    engine = roomy(disable_dynamic_prompt_cache=True)
    engine.add(add_request([1, 2], prompt(20), 3, n=2, ignore_eos=True))
    engine.run()
    assert [len(r.token_ids) for r in engine.sent][0] == 40
    assert engine.finished[2].cached_tokens == 0 and engine.scheduler.snapshot().slots_cached == 0


@pytest.mark.parametrize("policy", ["conservative", "past_future"])
def test_prefix_that_several_read_counts_once_against_admission(policy):
    """40 tokens in common and about 10 of its own for each: four would need 200 slots if each counted alone."""
    limits = make_limits(
        max_total_token_num=150, max_req_total_len=100, batch_max_tokens=64, chunked_prefill_size=64,
        schedule_policy=policy,
    )  # fmt: skip
    engine = Engine(limits)
    together = 0
    for i in range(1, 6):
        engine.add(add_request(i, prompt(40) + [900 + i] * 2, 12, ignore_eos=True))
        engine.plan()
        engine.execute()
        engine.apply()
        together = max(together, engine.scheduler.snapshot().running)
    assert together >= 4
    assert engine.scheduler.snapshot().estimated_peak <= 150
    engine.run()
    assert len(engine.finished) == 5 and engine.scheduler.pauses == 0


def test_siblings_count_their_prompt_once_against_admission():
    limits = make_limits(
        max_total_token_num=110, max_req_total_len=100, batch_max_tokens=64, chunked_prefill_size=64
    )
    engine = Engine(limits)
    engine.add(add_request(9, [800] * 4, 30, ignore_eos=True))
    engine.plan()
    engine.add(add_request([1, 2, 3], prompt(30), 6, n=3, ignore_eos=True))
    engine.plan()
    assert engine.scheduler.snapshot().running == 4
    engine.run()
    assert len(engine.finished) == 4 and engine.scheduler.pauses == 0
