"""Whose turn it is: priorities, arrival, who passes whom, and paused requests."""

from __future__ import annotations

import pytest
from support.router_device import Engine, add_request, make_limits

from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice
from lightllm.router.admission.schedule_policy import Conservative
from lightllm.router.admission.waiting import WaitingList
from lightllm.router.request import Request, State
from lightllm.sampling_params import SamplingParams


def request(serial, priority=0):
    params = SamplingParams(max_new_tokens=5, priority=priority)
    return requests(AddRequest(int32([1]), params, [Choice(serial, 0)]), serial)[0]


def requests(message, serial):
    return [
        Request(message, choice, serial + i, serial, frozenset()) for i, choice in enumerate(message.choices)
    ]


def serials(waiting):
    return [r.serial for group in waiting.in_turn() for r in group.requests]


def test_lower_priority_values_come_first_and_arrival_decides_among_equals():
    waiting = WaitingList()
    for serial, priority in enumerate([0, 5, -1, 0, 5, -1]):
        waiting.add([request(serial, priority)])
    assert serials(waiting) == [2, 5, 0, 3, 1, 4]
    assert waiting.count == 6


def test_paused_request_returns_to_its_place_within_its_priority():
    waiting = WaitingList()
    for serial, priority in [(1, 0), (2, 0), (5, 0), (3, -1)]:
        waiting.add([request(serial, priority)])
    paused = request(4)
    paused.state = State.PAUSED
    waiting.put_back(paused)
    assert serials(waiting) == [3, 1, 2, 4, 5]
    assert (waiting.count, waiting.paused) == (5, 1)
    assert [g.may_be_passed(1) for g in waiting.in_turn()] == [True, True, True, False, True]


def test_requests_that_ended_while_they_waited_are_skipped():
    waiting = WaitingList()
    first, second = [request(0), request(1)], [request(2)]
    waiting.add(first)
    waiting.add(second)
    for gone in (first[1], second[0]):
        waiting.discard(gone)
        gone.state = State.ABORTED
    assert serials(waiting) == [0] and waiting.count == 1
    waiting.enter(next(waiting.in_turn()), [])
    assert not waiting and serials(waiting) == []


def test_list_forgets_those_that_ended_behind_a_head_that_stays():
    waiting = WaitingList()
    waiting.add([request(0)])
    for serial in range(1, 2000):
        late = request(serial, priority=serial % 7)
        waiting.add([late])
        waiting.discard(late)
        late.state = State.ABORTED
    assert waiting.count == 1
    assert len(waiting._groups) < 200


def test_the_prompt_of_siblings_counts_once_whichever_of_them_waits():
    choices = [Choice(i, i, int32([7] * i)) for i in range(3)]
    group = requests(AddRequest(int32(range(1, 11)), SamplingParams(max_new_tokens=5), choices), 0)
    waiting = WaitingList()
    waiting.add(group)
    contexts = [waiting.context]
    for gone in group:
        waiting.discard(gone)
        gone.state = State.ABORTED
        contexts.append(waiting.context)
    assert contexts == [10 + 0 + 1 + 2, 10 + 1 + 2, 10 + 2, 0]
    assert waiting.ahead_of(0) == (0, 0)


def test_a_restored_request_is_not_passed():
    waiting = WaitingList()
    waiting.add([request(0)])
    params = SamplingParams(max_new_tokens=5)
    waiting.add(requests(AddRequest(int32([1]), params, [Choice(1, 0)], restored=True), 1))
    assert [group.may_be_passed(1) for group in waiting.in_turn()] == [True, False]


# -- who passes whom, in the scheduler


def conservative(**limits):
    return Engine(make_limits(**limits), policy=Conservative())


def entered(engine):
    return sorted(engine.scheduler._running.requests)


def test_requests_that_fit_pass_one_that_does_not():
    engine = conservative(max_total_token_num=40)
    engine.add(add_request(1, [1] * 4, 26))
    engine.add(add_request(2, [2] * 8, 20))  # does not fit beside the first
    for i in (3, 4, 5):
        engine.add(add_request(i, [i] * 2, 2))
    engine.plan()
    assert entered(engine) == [1, 3, 4, 5]
    engine.run()
    assert len(engine.finished) == 5


@pytest.mark.parametrize("max_overtakes", [0, 1, 2])
def test_nobody_is_passed_more_often_than_allowed(max_overtakes):
    engine = conservative(max_total_token_num=40, max_overtakes=max_overtakes)
    engine.add(add_request(1, [1] * 4, 26))
    engine.add(add_request(2, [2] * 8, 20))
    for i in (3, 4, 5):
        engine.add(add_request(i, [i] * 2, 2))
    engine.plan()
    assert entered(engine) == [1, 3, 4, 5][: 1 + max_overtakes]
    engine.run()
    assert len(engine.finished) == 5


def test_siblings_that_do_not_fit_together_are_passed_by_one_that_does():
    engine = conservative(max_total_token_num=40, running_max_req_size=3)
    engine.add(add_request(1, [1] * 4, 10))
    engine.add(add_request([2, 3, 4], [2] * 4, 3))
    engine.add(add_request(5, [5] * 4, 3))
    engine.plan()
    assert entered(engine) == [1, 5]
    engine.run()
    assert len(engine.finished) == 5


def test_better_priority_enters_first_and_pauses_last():
    engine = Engine(make_limits(max_total_token_num=30, schedule_policy="aggressive"))
    engine.add(add_request(1, [1] * 4, 20, ignore_eos=True, priority=1))
    engine.add(add_request(2, [2] * 4, 20, ignore_eos=True, priority=-1))
    engine.add(add_request(3, [3] * 4, 20, ignore_eos=True))
    paused = []
    for _ in range(60):
        engine.plan()
        engine.execute()
        engine.apply()
        paused += [
            r.id for g in engine.scheduler._waiting.in_turn() for r in g.requests if r.id not in paused
        ]
    assert paused[:2] == [1, 3]
    engine.run()
    assert {i: len(output) for i, output in engine.outputs.items()} == {1: 20, 2: 20, 3: 20}
    order = list(engine.finished)
    assert order == [2, 3, 1]


@pytest.mark.parametrize(("disabled", "rounds"), [(False, 0), (True, 3)])
def test_streams_have_some_rounds_to_themselves_before_others_enter(disabled, rounds):
    engine = conservative(disable_aggressive_schedule=disabled, router_max_wait_tokens=3)
    engine.add(add_request(1, [1] * 4, 20, ignore_eos=True))
    engine.plan()
    engine.add(add_request(2, [2] * 4, 5))
    waited = 0
    while entered(engine) == [1]:
        engine.execute()
        engine.apply()
        engine.plan()
        waited += 1
    assert waited == rounds + 1
    engine.run()
    assert len(engine.finished) == 2
