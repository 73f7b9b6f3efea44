"""A queue whose head does not fit is looked at again when something has changed, or some rounds have gone by."""

from __future__ import annotations

import pytest
from support.router_device import Engine, add_request, make_limits

from lightllm.router.admission.controller import SKIPPED


@pytest.fixture
def server(monkeypatch):
    """Five requests run in 240 slots, of which the last two are small. Number 6 does not fit, and has tried once: when the
    second and the third end, there would be some 40 slots too few."""
    limits = make_limits(
        max_total_token_num=240, max_req_total_len=240, batch_max_tokens=64, schedule_policy="conservative"
    )
    engine = Engine(limits)
    admission = engine.scheduler._admission
    engine.tries = 0

    def in_turn(*how, original=admission._in_turn):
        engine.tries += 1
        return original(*how)

    monkeypatch.setattr(admission, "_in_turn", in_turn)
    for number, new in enumerate([90, 60, 60, 15, 15], start=1):
        engine.add(add_request(number, [number] * 10, new, ignore_eos=True))
    for _ in range(3):
        one_round(engine)
    engine.add(add_request(6, [6] * 10, 90, ignore_eos=True))
    engine.tries = 0
    one_round(engine)
    assert engine.tries == 1 and waiting(engine) == 1
    return engine


def one_round(engine: Engine) -> None:
    assert engine.plan()
    engine.execute()
    engine.apply()


def waiting(engine: Engine) -> int:
    return engine.scheduler.snapshot().waiting


def leave(engine: Engine, request_id: int) -> None:
    engine.scheduler.abort(request_id)
    engine.take(engine.scheduler.drain_outputs())


def test_while_nothing_is_given_back_nothing_is_tried(server):
    one_round(server)
    assert server.tries == 1 and waiting(server) == 1


def test_a_group_that_lacked_no_more_than_is_given_back_enters_in_the_next_round(server):
    leave(server, 2)
    one_round(server)
    assert server.tries == 2 and waiting(server) == 0


def test_a_group_that_lacks_more_than_is_given_back_tries_and_goes_on_waiting(server):
    leave(server, 4)
    one_round(server)
    assert server.tries == 2 and waiting(server) == 1


def test_a_new_arrival_tries_at_once(server):
    server.add(add_request(7, [7] * 4, 4, ignore_eos=True))
    one_round(server)
    assert server.tries == 2 and waiting(server) == 1


def test_a_waiting_group_tries_again_after_some_rounds_all_the_same(server):
    for _ in range(SKIPPED):
        one_round(server)
    assert server.tries == 1
    one_round(server)
    assert server.tries == 2 and waiting(server) == 1


def test_all_that_enter_in_one_round_share_one_forecast(monkeypatch):
    engine = Engine(make_limits(max_total_token_num=1000, max_req_total_len=100, batch_max_tokens=64))
    admission, made = engine.scheduler._admission, []
    monkeypatch.setattr(
        admission, "forecast", lambda original=admission.forecast: made.append(1) or original()
    )
    for number in range(5):
        engine.add(add_request(1 + number, [number, 5, 6, 7], 50))
    one_round(engine)
    one_round(engine)  # in which none waits
    assert len(made) == 1 and waiting(engine) == 0
