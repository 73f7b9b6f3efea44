"""Which requests are refused for load, and whether the time at which they are told to come back is true."""

from __future__ import annotations

import numpy as np
import pytest
from support.loaded_server import LoadedServer
from support.router_device import add_request

from lightllm.errors import ServerOverloaded
from lightllm.router.admission.overload import ALWAYS_WAIT, MOST_SECONDS, SLACK, Returns

ROWS = {"max_total_token_num": 100_000, "running_max_req_size": 16}
"""A server of which rows are short, and not memory: about 25 requests a second of 50 tokens."""
DECLARED = pytest.mark.parametrize(
    ("declared", "shortest"), [(400, 10), (50, 49), (50, 60)], ids=["random", "equal", "cut"]
)


@DECLARED
def test_a_request_waits_no_longer_than_the_option_says_from_the_first_one_on(declared, shortest):
    server = LoadedServer(**ROWS, max_waiting_seconds=5.0, shortest=shortest, longest=max(89, shortest))
    server.serve(rate=250, seconds=4, declared=declared)
    assert "max_waiting_seconds" in server.refusals[-1].message
    assert 3.0 < server.waits().max() < 5.5


@DECLARED
def test_the_first_token_is_as_early_as_promised_where_rows_are_short(declared, shortest):
    server = LoadedServer(**ROWS, ttft_slo=1.5, shortest=shortest, longest=max(89, shortest))
    server.serve(rate=250, seconds=4, declared=declared)
    assert np.mean(server.waits() > 1.5) < 0.02
    assert len(server.arrival) > 100


@pytest.mark.parametrize("preferred", [20, 5], ids=["a twentieth", "a fifth"])
def test_and_where_requests_of_a_better_priority_keep_passing_the_others(preferred):
    """Ten times what can be served: those of a better priority are half of it, or more than all of it."""
    server = LoadedServer(**ROWS, ttft_slo=1.5, longest=89)
    server.serve(rate=250, seconds=20, preferred=preferred)
    ids = np.array([i for i in server.arrival if i in server.first])
    waits = np.array([server.first[i] - server.arrival[i] for i in ids])
    assert np.mean(waits > 1.5) < 0.02
    assert np.mean(waits[ids % preferred == 0]) < 0.5 or preferred == 5
    assert len(ids) > 0.9 * 20 * 25


def test_the_first_token_is_as_early_as_promised_where_prompts_take_the_time():
    server = LoadedServer(ttft_slo=1.5, max_total_token_num=100_000, shortest=2, longest=6)
    server.serve(rate=100, seconds=6, prompt=150)
    assert np.mean(server.waits() > 1.5) < 0.02
    assert len(server.arrival) > 100


def test_the_server_does_as_much_under_overload_as_at_its_best():
    done = []
    for rate in (30, 300):
        server = LoadedServer(**ROWS, max_waiting_seconds=3.0)
        server.serve(rate=rate, seconds=5)
        busy = [round_.num_decode for round_, _ in server.rounds]
        done.append(np.mean(busy[len(busy) // 4 : len(busy) // 2]))
    assert done[1] > 0.95 * done[0]


def test_some_may_wait_however_slow_the_server_is():
    server = LoadedServer(**ROWS, per_held=1e-3, max_waiting_seconds=0.1)
    server.serve(rate=5, seconds=8)
    for i in range(1000, 1000 + 16 + ALWAYS_WAIT):
        assert server.add(i) is None
        if i == 1000 + 15:
            server.turn()
    assert server.scheduler.snapshot().waiting == ALWAYS_WAIT
    assert server.add(2000) is not None


def test_who_comes_back_when_it_is_told_to_is_accepted():
    """Ten times as many as can be served, for a second."""
    for options in ({"max_waiting_requests": 60}, {"ttft_slo": 1.5}):
        server = LoadedServer(**ROWS, **options)
        server.serve(rate=20, seconds=4)
        came = np.array(list(server.serve_patient(rate=250, seconds=1, first=1000).values()))
        assert np.mean(came > 1) > 0.5
        assert np.mean(came[came > 1] == 2) > 0.8


def test_a_better_priority_is_neither_refused_nor_kept_waiting_for_those_behind_it():
    server = LoadedServer(**ROWS, max_waiting_requests=100)
    for i in range(200):
        server.add(i)
    server.turn()
    assert server.refusals and server.scheduler.snapshot().waiting > 80
    assert server.add(1000, priority=-1) is None
    while 1000 not in server.first:
        server.turn()
    waiting = [i for i in server.arrival if i not in server.first]
    assert len(waiting) > 50


def test_the_list_has_an_end_for_ever_better_priorities_too():
    server = LoadedServer(max_waiting_requests=10)
    refused = [server.add(i, priority=-i) for i in range(30)]
    assert refused[:20] == [None] * 20
    assert all(isinstance(error, ServerOverloaded) for error in refused[20:])


def test_what_follows_an_accepted_prompt_is_not_refused():
    server = LoadedServer(max_waiting_requests=2, ttft_slo=1.0)
    for i in range(5):
        server.add(i)
    assert server.refusals
    message = add_request(10, [1] * 40, 50)
    with pytest.raises(ServerOverloaded):
        server.scheduler.add(message)
    server.scheduler.add(message.__class__(message.prompt_ids, message.params, message.choices, follows=True))


def test_each_is_told_a_time_of_its_own():
    returns = Returns()
    told = [returns.retry_after(1, ahead=10, per_second=10.0 * SLACK, now=0.0) for _ in range(100)]
    assert told == sorted(told) and told[0] == 1 and told[-1] == 11
    assert returns.retry_after(1, ahead=10, per_second=10.0 * SLACK, now=50.0) == 1


def test_nobody_is_told_more_than_a_minute_and_they_do_not_all_come_at_once():
    returns = Returns()
    told = [returns.retry_after(1, ahead=0, per_second=1.0, now=0.0) for _ in range(1000)]
    assert max(told) <= MOST_SECONDS
    assert len(set(told[-30:])) > 10
    assert returns.retry_after(1, ahead=0, per_second=0.0, now=0.0) == 1
