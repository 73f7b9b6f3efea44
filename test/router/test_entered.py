"""When a request began to run: told once, with its first token, and not changed by a pause; and how often requests paused."""

from __future__ import annotations

from support.router_device import Engine, add_request, make_limits


def test_the_first_token_comes_with_the_moment_at_which_the_request_left_the_waiting_list():
    engine = Engine(make_limits(running_max_req_size=1, max_total_token_num=100))
    engine.now = 5.0
    engine.add(add_request(1, [1, 2, 3], 4, ignore_eos=True))
    engine.add(add_request(2, [7, 8, 9], 4, ignore_eos=True))
    engine.plan()
    engine.now = 9.0  # the other one enters in a later round
    engine.run()
    assert engine.entered == {1: 5.0, 2: 9.0}


def test_a_pause_does_not_change_it_and_is_counted():
    limits = make_limits(max_total_token_num=24, max_req_total_len=24, schedule_policy="aggressive")
    engine = Engine(limits)
    engine.now = 1.0
    for number in (1, 2):
        engine.add(add_request(number, [number] * 4, 16, ignore_eos=True))
    engine.plan()
    engine.now = 2.0
    engine.run()
    assert engine.scheduler.pauses > 0
    assert engine.scheduler.snapshot().pauses == engine.scheduler.pauses
    assert engine.entered == {1: 1.0, 2: 1.0}


def test_a_clock_that_nobody_gives_says_nothing():
    engine = Engine(make_limits())
    engine.add(add_request(1, [1, 2, 3], 4))
    engine.run()
    assert engine.entered == {} and engine.finished[1]
