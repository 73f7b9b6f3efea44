"""Who waits for memory is not looked at in every round: only when somebody may fit now, or some rounds have gone by."""

from __future__ import annotations

import pytest
from support.router_device import Engine, add_request, make_limits

from lightllm.router.admission.entry import FORECAST_ROUNDS, SKIPPED


@pytest.fixture
def server(monkeypatch):
    """Five requests run in 240 slots, of which the last two are small. Number 6 does not fit, and has tried once: when the
    second and the third end, there would be some 40 slots too few."""
    limits = make_limits(
        max_total_token_num=240, max_req_total_len=240, batch_max_tokens=64, schedule_policy="conservative"
    )
    engine = Engine(limits)
    entry = engine.scheduler._entry
    engine.tries = 0

    def in_turn(*how, original=entry._in_turn):
        engine.tries += 1
        return original(*how)

    monkeypatch.setattr(entry, "_in_turn", in_turn)
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


def test_while_less_is_given_back_than_was_missing_nobody_tries(server):
    leave(server, 4)
    one_round(server)
    assert server.tries == 1 and waiting(server) == 1


def test_who_lacked_no_more_than_is_given_back_enters_in_the_next_round(server):
    leave(server, 2)
    one_round(server)
    assert server.tries == 2 and waiting(server) == 0


def test_what_several_give_back_adds_up(server):
    leave(server, 4)
    leave(server, 5)
    one_round(server)
    assert server.tries == 2


def test_a_new_arrival_tries_at_once(server):
    server.add(add_request(7, [7] * 4, 4, ignore_eos=True))
    one_round(server)
    assert server.tries == 2 and waiting(server) == 1


def test_who_waits_tries_again_after_some_rounds_all_the_same(server):
    for _ in range(SKIPPED):
        one_round(server)
    assert server.tries == 1
    one_round(server)
    assert server.tries == 2 and waiting(server) == 1


def forecasts(capacity: int, rounds: int) -> int:
    """How many are made while in each round somebody enters who may say 50 tokens, and says a few."""
    limits = make_limits(
        max_total_token_num=capacity, max_req_total_len=100, running_max_req_size=64, batch_max_tokens=128
    )
    engine = Engine(limits)
    entry, count = engine.scheduler._entry, 0

    def forecast(original=entry.forecast):
        nonlocal count
        count += 1
        return original()

    entry.forecast = forecast
    for number in range(rounds):
        engine.add(add_request(1 + number, [number, 5, 6, 7], 50))
        one_round(engine)
        assert waiting(engine) == 0 or capacity < 1000
    return count


def test_where_memory_is_plenty_one_forecast_serves_several_rounds():
    assert 40 // FORECAST_ROUNDS <= forecasts(100_000, 40) <= 40 // FORECAST_ROUNDS + 2


def test_where_memory_is_short_every_try_has_its_own_forecast():
    assert forecasts(150, 40) > 20
