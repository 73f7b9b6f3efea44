"""The scheduler's rules, one by one, against a device that checks every token it reads."""

from __future__ import annotations

import numpy as np
import pytest
from support.router_device import EOS, Engine, add_request, cut_at_eos, generate_alone, make_limits

from lightllm.errors import InvalidParameter, PromptTooLong, ServerOverloaded
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, TopLogprobs
from lightllm.protocol.rounds import RoundResult, RowPromptLogprobs
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.scheduler import Scheduler
from lightllm.sampling_params import SamplingParams


def prompt(length: int, start: int = 1) -> list[int]:
    return list(range(start, start + length))


def never_pauses(engine: Engine) -> None:
    state = engine.scheduler.snapshot()
    assert state.paused == 0 and not engine.scheduler._running.pausing


def run_without_pausing(engine: Engine) -> None:
    """With two rounds in flight whenever there is something to plan; nobody pauses, and no decode row skips a round."""
    while engine.scheduler.has_work:
        running = engine.scheduler._running
        while engine.scheduler.in_flight < 2:
            decoding = int(running._decodes.sum())
            if not engine.plan():
                assert not decoding and not running.prefilling, "the memory is too small for who runs"
                break
            assert engine.sent[-1].num_decode == decoding
        engine.execute()
        engine.apply()
        engine.scheduler.check_invariants()
        never_pauses(engine)
    engine.run()


def test_lone_request_of_exactly_the_memory_runs_and_one_more_token_is_refused():
    engine = Engine(
        make_limits(max_total_token_num=40, max_req_total_len=40, chunked_prefill_size=3, batch_max_tokens=4)
    )
    message = add_request(1, prompt(25), 15, ignore_eos=True)
    engine.add(message)
    run_without_pausing(engine)
    assert engine.outputs[1] == generate_alone(prompt(25), 1, 0, 1000, 15)
    with pytest.raises(PromptTooLong, match="25 tokens; with max_new_tokens 16 that is 41.* at most 40"):
        engine.add(add_request(2, prompt(25), 16))
    assert engine.scheduler.snapshot().refused == 1


def test_decode_rows_come_first_and_prefill_fills_the_rest_of_the_budget():
    engine = Engine(make_limits(batch_max_tokens=6, chunked_prefill_size=4, max_total_token_num=200))
    engine.add(add_request(1, prompt(3), 10, ignore_eos=True))
    engine.plan()
    engine.add(add_request(2, prompt(11), 5, ignore_eos=True))
    engine.add(add_request(3, prompt(5), 5, ignore_eos=True))
    engine.run(ahead=1)
    first, second, third = engine.sent[:3]
    assert (first.num_decode, first.q_len.tolist(), first.samples.tolist()) == (0, [3], [1])
    assert (second.num_decode, second.q_len.tolist(), second.samples.tolist()) == (1, [1, 4, 1], [1, 0, 0])
    assert (third.num_decode, third.q_len.tolist()) == (1, [1, 4, 1])
    assert engine.device.max_tokens == 6


def test_two_rounds_are_in_flight_and_not_more():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 10))
    assert engine.plan() and engine.plan() and not engine.plan()
    assert engine.scheduler.in_flight == 2


def test_length_end_is_known_when_planning_and_runs_no_surplus_round():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 4, ignore_eos=True))
    engine.run()
    assert len(engine.sent) == 4
    assert engine.finished[1].reason == "length" and engine.finished[1].output_tokens == 4


def test_eos_runs_over_by_one_round_whose_token_is_dropped():
    tokens = prompt(3)
    seed = next(
        s
        for s in range(1000)
        if generate_alone(tokens, s, 0, 12, 4)[2] == EOS != generate_alone(tokens, s, 0, 12, 4)[0]
    )
    engine = Engine(make_limits(), vocab=12)
    engine.add(add_request(1, tokens, 30, seed=seed))
    engine.run()
    alone = cut_at_eos(generate_alone(tokens, seed, 0, 12, 30))
    assert engine.outputs[1] == alone
    assert engine.finished[1].reason == "stop" and engine.finished[1].output_tokens == len(alone)
    assert len(engine.sent) == len(alone) + 1


def test_stop_token_ids_end_a_request_even_when_eos_is_ignored():
    stop = generate_alone(prompt(3), 1, 0, 1000, 5)[4]
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 30, ignore_eos=True, stop_token_ids=[stop]))
    engine.run()
    assert engine.finished[1].reason == "stop" and engine.outputs[1][-1] == stop
    assert engine.sent[0].joins[0].end_token_ids == [stop]


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_abort_frees_every_slot_at_once_and_drops_what_is_in_flight(rounds):
    engine = Engine(make_limits(chunked_prefill_size=2, batch_max_tokens=4))
    engine.add(add_request(1, prompt(5), 20, ignore_eos=True))
    engine.add(add_request(2, prompt(4, 50), 9, ignore_eos=True))
    for _ in range(rounds):
        engine.plan()
        engine.execute()
        engine.apply()
    engine.plan()
    engine.scheduler.abort(1)
    engine.take(engine.scheduler.drain_outputs())
    assert engine.finished[1].reason == "abort"
    engine.scheduler.check_invariants()
    engine.run()
    assert engine.outputs[2] == generate_alone(prompt(4, 50), 2, 0, 1000, 9)
    assert engine.scheduler.snapshot().slots_used == 0


def test_abort_that_overtakes_its_request_ends_it_on_arrival():
    engine = Engine(make_limits())
    engine.scheduler.abort(7, "timeout")
    assert engine.scheduler.drain_outputs() is None
    engine.add(add_request(7, prompt(3), 5))
    assert engine.finished[7].reason == "timeout"
    assert not engine.scheduler.has_work and engine.scheduler.next_round() is None


def test_memory_of_unknown_aborts_is_bounded():
    scheduler = Scheduler(make_limits())
    for i in range(100_000):
        scheduler.abort(i)
    assert len(scheduler._early_aborts) <= 5000


def test_requests_that_end_while_waiting_leave_nothing_behind():
    scheduler = Scheduler(make_limits(running_max_req_size=1))
    scheduler.add(add_request(0, prompt(3), 50))
    assert scheduler.next_round() is not None
    for i in range(1, 2000):
        scheduler.add(add_request(i, prompt(3), 5))
        scheduler.abort(i)
    assert len(scheduler._waiting._groups) < 200
    assert scheduler.snapshot().waiting == 0


def test_siblings_enter_together_or_not_at_all():
    engine = Engine(make_limits(running_max_req_size=3, batch_max_tokens=64))
    engine.add(add_request(1, prompt(3), 8, ignore_eos=True))
    engine.add(add_request([2, 3, 4], prompt(4, 30), 6, n=3, ignore_eos=True))
    engine.plan()
    assert engine.scheduler.snapshot().running == 1 and engine.scheduler.snapshot().waiting == 3
    engine.run()
    starts = [[j.choice for j in r.joins] for r in engine.sent if r.joins]
    assert starts == [[0], [0], [1, 2]]  # the others wait for the prompt of the first one
    for index, i in enumerate((2, 3, 4)):
        assert engine.outputs[i] == generate_alone(prompt(4, 30), 2, index, 1000, 6)


def test_siblings_that_can_never_run_together_are_refused_as_a_whole():
    engine = Engine(make_limits(running_max_req_size=3, max_total_token_num=64))
    with pytest.raises(InvalidParameter, match="4 answers"):
        engine.add(add_request([1, 2, 3, 4], prompt(4), 6))
    with pytest.raises(PromptTooLong, match="64"):
        engine.add(add_request([1, 2], prompt(20), 30))
    assert not engine.scheduler.has_work


def test_waiting_list_is_bounded():
    scheduler = Scheduler(make_limits(max_waiting_requests=2))
    scheduler.add(add_request(1, prompt(3), 5))
    scheduler.add(add_request(2, prompt(3), 5))
    with pytest.raises(ServerOverloaded) as raised:
        scheduler.add(add_request(3, prompt(3), 5))
    assert raised.value.retry_after == 1
    scheduler.add(add_request(4, prompt(3), 5, outputs=[9]))  # restored: it was accepted before
    scheduler.add(add_request(5, prompt(3), 5, restored=True))
    assert (scheduler.snapshot().refused, scheduler.snapshot().restored) == (1, 2)


def test_group_larger_than_the_waiting_list_may_wait_alone():
    scheduler = Scheduler(make_limits(max_waiting_requests=2, batch_max_tokens=64))
    scheduler.add(add_request([1, 2, 3], prompt(3), 5))
    assert scheduler.snapshot().waiting == 3


def test_restored_request_continues_as_it_would_have():
    alone = generate_alone(prompt(6), 1, 0, 1000, 12)
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(6), 12, outputs=alone[:5], ignore_eos=True, repetition_penalty=1.5))
    engine.run()
    assert engine.outputs[1] == alone
    assert engine.finished[1].output_tokens == 12
    assert engine.sent[0].joins[0].prompt_len == 6
    assert engine.sent[0].joins[0].history_ids.tolist() == prompt(6) + alone[:5]


def test_what_was_cached_of_a_restored_request_is_known_from_before():
    """Its prompt is computed again, or found in the cache again: it is not counted a second time."""
    engine = Engine(make_limits())
    for i, cached in ((1, 4), (2, 0)):
        outputs = generate_alone(prompt(6), i, 0, 1000, 2)
        engine.add(add_request(i, prompt(6), 5, outputs, cached_tokens=cached, ignore_eos=True))
        engine.run()
    assert [engine.finished[i].cached_tokens for i in (1, 2)] == [4, 0]


def test_restored_request_that_was_complete_finishes_at_once():
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 5, outputs=[8, EOS]))
    engine.add(add_request(2, prompt(3), 2, outputs=[8, 9]))
    assert (engine.finished[1].reason, engine.finished[2].reason) == ("stop", "length")


@pytest.mark.parametrize(
    ("params", "needed"),
    [({}, False), ({"presence_penalty": 1.0}, True), ({"repetition_penalty": 1.2}, True), ({"prompt_logprobs": 0}, True),
     ({"exponential_decay_length_penalty": (2, 1.5)}, False)],
)  # fmt: skip
def test_history_travels_only_where_sampling_needs_it(params, needed):
    engine = Engine(make_limits())
    engine.add(add_request(1, prompt(3), 5, **params))
    engine.plan()
    assert len(engine.sent[0].joins[0].history_ids) == (3 if needed else 0)


def test_a_prompt_beyond_max_req_input_len_is_refused_with_the_numbers():
    engine = Engine(make_limits(max_total_token_num=100, max_req_total_len=100, max_req_input_len=20))
    engine.add(add_request(1, prompt(20), 4, ignore_eos=True))
    with pytest.raises(PromptTooLong, match=r"21 tokens.* at most 20 \(max_req_input_len\)"):
        engine.add(add_request(2, prompt(21), 4))


def test_slow_prefill_beside_a_long_decode_does_not_run_out_of_memory():
    """In lockstep both would fit; but the prompt needs 50 rounds, and by then the other one holds half of the memory."""
    engine = Engine(
        make_limits(
            max_total_token_num=100, max_req_total_len=100, batch_max_tokens=2, chunked_prefill_size=1
        )
    )
    engine.add(add_request(1, prompt(1), 99, ignore_eos=True))
    engine.add(add_request(2, prompt(55), 2, ignore_eos=True))
    run_without_pausing(engine)
    assert engine.outputs[1] == generate_alone(prompt(1), 1, 0, 1000, 99)
    assert engine.outputs[2] == generate_alone(prompt(55), 2, 0, 1000, 2)


@pytest.mark.parametrize(("capacity", "together"), [(20, False), (21, True)])
def test_slots_are_free_one_round_after_the_end_and_admission_knows(capacity, together):
    """The first ends with 10 slots; while its last round is in flight the second one takes its 11th."""
    engine = Engine(make_limits(max_total_token_num=capacity, max_req_total_len=20, batch_max_tokens=32))
    engine.add(add_request(1, prompt(8), 3, ignore_eos=True))
    engine.add(add_request(2, prompt(8, 50), 5, ignore_eos=True))
    run_without_pausing(engine)
    assert (len(engine.sent[0].joins) == 2) == together
    assert engine.outputs[2] == generate_alone(prompt(8, 50), 2, 0, 1000, 5)


def test_random_loads_never_wait_for_memory_once_they_run():
    rng = np.random.default_rng(0)
    for _ in range(60):
        capacity, chunk = int(rng.integers(12, 40)), int(rng.integers(1, 20))
        limits = make_limits(
            max_total_token_num=capacity,
            max_req_total_len=capacity,
            batch_max_tokens=chunk + 8,
            chunked_prefill_size=chunk,
        )
        engine = Engine(limits)
        for i in range(8):
            length = int(rng.integers(1, capacity // 2))
            engine.add(
                add_request(
                    i, prompt(length, i * 50), int(rng.integers(1, capacity - length)), ignore_eos=True
                )
            )
        run_without_pausing(engine)
        assert len(engine.finished) == 8


def test_whole_prompts_are_never_split():
    engine = Engine(
        make_limits(
            max_total_token_num=200, max_req_total_len=20, batch_max_tokens=20, chunked_prefill_size=20
        )
    )
    for i in range(5):
        engine.add(add_request(i, prompt(15, 20 * i), 5, ignore_eos=True))
        engine.plan()
        engine.execute()
        engine.apply()
    engine.run()
    chunks = [r.q_len[r.num_decode :].tolist() for r in engine.sent]
    assert [c for c in chunks if c] == [[15]] * 5
    assert len(engine.finished) == 5 and engine.device.max_tokens <= 20


def test_alternatives_follow_their_token_when_others_have_left():
    scheduler = Scheduler(make_limits())
    for i in (1, 2):
        scheduler.add(add_request(i, prompt(3, 10 * i), 5, logprobs=1))
    scheduler.next_round()
    scheduler.abort(1)
    alternatives = {0: TopLogprobs([4], [-1.0]), 1: TopLogprobs([5], [-2.0])}
    result = RoundResult(0, int32([4, 5]), np.array([-1, -2], np.float32), top=alternatives)
    tokens = scheduler.apply(result).tokens
    assert tokens.request_ids == [2] and tokens.token_ids == [5] and tokens.logprobs == [-2.0]
    assert tokens.top == {0: TopLogprobs([5], [-2.0])}


def test_prompt_logprobs_reach_their_request_once():
    scheduler = Scheduler(make_limits())
    scheduler.add(add_request(1, prompt(8), 5, prompt_logprobs=0))
    scheduler.next_round()
    part = RowPromptLogprobs(0, 1, np.arange(7, dtype=np.float32))
    tokens = scheduler.apply(
        RoundResult(0, int32([4]), np.zeros(1, np.float32), prompt_logprobs=[part])
    ).tokens
    assert (tokens.prompt_logprobs[0].request_id, tokens.prompt_logprobs[0].start) == (1, 1)
    scheduler.next_round()
    longer = RowPromptLogprobs(0, 5, np.arange(6, dtype=np.float32))
    tokens = scheduler.apply(
        RoundResult(1, int32([4]), np.zeros(1, np.float32), prompt_logprobs=[longer])
    ).tokens
    assert tokens.prompt_logprobs[0].start == 8 and tokens.prompt_logprobs[0].logprobs.tolist() == [
        3.0,
        4.0,
        5.0,
    ]


def test_missing_seed_counts_as_zero_and_bad_messages_are_refused():
    scheduler = Scheduler(make_limits())
    params = SamplingParams(max_new_tokens=3)
    message = add_request(1, prompt(2), 3)
    scheduler.add(AddRequest(int32([1]), params, message.choices))
    assert scheduler.next_round().joins[0].seed == 0
    with pytest.raises(InvalidParameter):
        scheduler.add(message)  # the id is taken
    with pytest.raises(InvalidParameter):
        scheduler.add(AddRequest(int32([]), params, []))


def test_same_calls_make_the_same_rounds():
    def rounds():
        engine = Engine(make_limits(chunked_prefill_size=3), vocab=12)
        for i in range(6):
            engine.add(add_request(i + 5, prompt(1 + 3 * i % 7, i + 1), 4 + i))
        engine.run()
        return [(r.rows.tolist(), r.slots.tolist(), r.leaves, [j.row for j in r.joins]) for r in engine.sent]

    assert rounds() == rounds()


def test_paused_request_resumes_before_a_newer_one_that_would_fit():
    limits = make_limits(max_total_token_num=40, max_req_total_len=40, schedule_policy="aggressive")
    engine = Engine(limits)
    for i in (1, 2):
        engine.add(add_request(i, prompt(8, 50 * i), 20, ignore_eos=True))
    while not engine.scheduler.snapshot().paused:
        engine.plan(), engine.execute(), engine.apply()
    engine.add(add_request(3, [7], 2, ignore_eos=True))
    engine.run()
    assert set(engine.finished) == {1, 2, 3}
    entered = [join.seed for round_ in engine.sent for join in round_.joins]
    assert entered[:2] == [1, 2] and entered[-1] == 3 and entered.count(2) > 1
    assert engine.scheduler.pauses == entered.count(2) - 1
    for i, text, new in ((1, prompt(8, 50), 20), (2, prompt(8, 100), 20), (3, [7], 2)):
        assert engine.outputs[i] == generate_alone(text, i, 0, 1000, new)


def test_what_is_accepted_does_not_depend_on_the_policy():
    for policy in ("conservative", "aggressive", "past_future"):
        scheduler = Scheduler(make_limits(schedule_policy=policy))
        scheduler.add(add_request([1, 2], prompt(10), 22))
        with pytest.raises(PromptTooLong, match="max_total_token_num"):
            scheduler.add(add_request([3, 4], prompt(10), 24))


def test_requests_whose_outputs_are_longer_than_predicted_pause_and_say_what_they_would_say_alone():
    lengths = OutputLengths()
    for _ in range(100):
        lengths.add(4, ended=True)
    engine = Engine(make_limits(max_total_token_num=60, max_req_total_len=60), lengths=lengths)
    for i in range(1, 9):
        engine.add(add_request(i, prompt(8, 50 * i), 25, ignore_eos=True, stop_token_ids=[10**6]))
    engine.run()
    assert engine.scheduler.pauses > 0
    for i in range(1, 9):
        assert engine.outputs[i] == generate_alone(prompt(8, 50 * i), i, 0, 1000, 25)
