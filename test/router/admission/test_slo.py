"""Promises of times: who would come too late is refused, with a time to come back; rounds shrink, and rows are limited."""

from __future__ import annotations

import numpy as np
import pytest
from support.loaded_server import LoadedServer
from support.router_device import add_request


def test_without_the_option_everybody_is_accepted_and_waits():
    server = LoadedServer()
    server.serve(rate=60, seconds=8)
    assert not server.refusals
    assert server.waits().max() > 5.0


@pytest.mark.parametrize("policy", ["past_future", "aggressive", "conservative"])
def test_who_would_come_too_late_is_refused_and_the_others_come_in_time(policy):
    """From the first request on: before anything is known of lengths and times, few are accepted."""
    server = LoadedServer(ttft_slo=1.0, schedule_policy=policy)
    server.serve(rate=60, seconds=10)
    accepted = len(server.arrival) / (len(server.arrival) + len(server.refusals))
    assert 0.03 < accepted < 0.8
    assert np.mean(server.waits() > 1.0) < 0.05
    assert all(error.status == 503 and error.retry_after >= 1 for error in server.refusals)
    assert "ttft_slo" in server.refusals[-1].message


def test_refusing_leaves_the_server_as_busy_as_it_was():
    busy = []
    for ttft in (0.0, 1.0):
        server = LoadedServer(ttft_slo=ttft)
        server.serve(rate=30, seconds=8)  # it learns
        server.rounds.clear()
        server.serve(rate=60, seconds=8, first=1000)
        busy.append(np.mean([round_.num_decode for round_, _ in server.rounds[:500]]))
    assert busy[1] > 0.9 * busy[0]


def test_nobody_is_refused_below_what_the_server_can_bear():
    server = LoadedServer(ttft_slo=1.0)
    server.serve(rate=8, seconds=10)  # it learns
    server.refusals.clear()
    server.arrival.clear()
    server.serve(rate=10, seconds=10, first=1000)
    assert not server.refusals and server.waits().max() < 1.0


@pytest.mark.parametrize(("waiting", "accepted"), [(0, False), (100, True)])
def test_the_fewer_ends_a_wait_consists_of_the_less_it_is_believed(monkeypatch, waiting, accepted):
    """Of 0.6 s, with 1 s promised."""
    server = LoadedServer(ttft_slo=1.0)
    server.serve(rate=1, seconds=1)
    monkeypatch.setattr(server.scheduler._wait, "_memory_seconds", lambda *_: 0.0)
    for i in range(100, 100 + waiting):
        server.add(i, prompt=1)
    monkeypatch.setattr(server.scheduler._wait, "_memory_seconds", lambda *_: 0.6)
    server.add(1000, prompt=1)
    assert (1000 in server.arrival) == accepted


def test_restored_requests_and_a_better_priority_are_not_refused_for_those_that_wait():
    server = LoadedServer(ttft_slo=1.0)
    server.serve(rate=60, seconds=5)
    for i in range(5000, 5100):
        server.add(i)
    assert 5099 not in server.arrival
    server.scheduler.add(add_request(6000, [1] * 40, 50, outputs=[5, 6]), server.now)
    server.scheduler.add(add_request(6002, [1] * 40, 50, restored=True), server.now)
    server.add(6001, priority=-1)
    assert 6001 in server.arrival


def test_chunks_shrink_so_that_rounds_keep_the_time():
    """A round of 0.05 s has room for 400 tokens; at full size it takes 0.07 s."""
    for tpot, longest in [(0.0, 0.07), (0.05, 0.05)]:
        server = LoadedServer(tpot_slo=tpot, max_total_token_num=20_000)
        for i in range(200):
            server.add(i, prompt=20)
            server.turn()
        server.rounds.clear()
        for i in range(200, 260):
            server.add(i, prompt=190)
        for _ in range(60):
            server.turn()
        seconds = [s for round_, s in server.rounds if round_.num_decode]
        assert len(seconds) > 10
        assert longest * 0.8 < max(seconds) <= longest * 1.02


def test_prompts_get_on_however_tight_the_time_is():
    server = LoadedServer(tpot_slo=0.001)
    for i in range(10):
        server.add(i)
    for _ in range(400):
        server.turn()
    assert len(server.first) == 10


def test_requests_wait_if_rounds_with_more_of_them_would_take_too_long():
    """0.02 s at 10 us a token held and 0.1 ms a row: about 600 tokens of 2000."""
    medians = []
    for tpot in (0.02, 0.0):
        server = LoadedServer(per_held=1e-5, tpot_slo=tpot, max_total_token_num=2000)
        server.serve(rate=60, seconds=6)
        late = server.rounds[len(server.rounds) // 2 : -50]
        medians.append(np.median([seconds for _, seconds in late]))
    assert medians[0] <= 0.02 < 0.025 < medians[1]


def test_requests_that_come_together_keep_the_time_too():
    """What rounds of many may hold is known before they run, however much memory there is."""
    server = LoadedServer(per_held=1e-5, tpot_slo=0.02, max_total_token_num=20_000)
    server.serve(rate=60, seconds=3)
    server.rounds.clear()
    for i in range(1000, 1200):
        server.add(i)
        if i % 5 == 4:
            server.turn()
    while server.scheduler.has_work:
        server.turn()
    assert max(seconds for round_, seconds in server.rounds if round_.num_decode) <= 0.02


def test_the_same_calls_give_the_same_rounds():
    found = []
    for _ in range(2):
        server = LoadedServer(ttft_slo=1.0, tpot_slo=0.05)
        server.serve(rate=60, seconds=3)
        found.append([(r.seq, r.rows.tolist(), r.slots.tolist()) for r, _ in server.rounds])
    assert found[0] == found[1] and len(found[0]) > 50
