"""One request that makes every round fail that it is in, among others: it is found, and ends alone."""

from __future__ import annotations

import pytest
from support.router_device import Engine, add_request, generate_alone, make_limits

from lightllm.protocol.rounds import Resync
from lightllm.router.isolation import MAX_ENDED
from lightllm.router.scheduler import MAX_FAILURES


def prompt(number: int, length: int = 6) -> list[int]:
    return list(range(10 * number + 1, 10 * number + 1 + length))


def seeds_of(engine: Engine, message) -> set[int]:
    """Whose rows a round computes; the seed names the request."""
    joined = {row: join.seed for row, join in engine.device.joins.items() if row not in message.leaves}
    joined |= {join.row: join.seed for join in message.joins}
    return {joined[row] for row in message.rows.tolist()}


def run(engine: Engine, bad: set[int], ahead: int = 2, only_when_sampling: bool = False) -> list[set[int]]:
    """To the end, where every round fails that computes one of `bad`; the requests of each round that failed."""
    failed = []
    for _ in range(5000):
        planned = len(engine.rounds) + len(engine.results) < ahead and engine.plan()
        failure = ""
        message = engine.rounds[0] if engine.rounds and not planned else None
        if message is not None and not isinstance(message, Resync) and not engine.skipping:
            inside = seeds_of(engine, message)
            if inside & bad and (message.samples.any() or not only_when_sampling):
                failure = "broken"
                failed.append(inside)
        if not planned and not engine.execute(failure) and not engine.apply():
            assert not engine.scheduler.has_work, "requests are left, but nothing happens"
            return failed
        engine.scheduler.check_invariants()
    raise AssertionError("no end")


def check(engine: Engine, count: int, bad: set[int], new: int) -> None:
    for i in range(count):
        if i in bad:
            assert (engine.finished[i].reason, engine.finished[i].error_type) == ("error", "BackendFailed")
        else:
            assert engine.outputs[i] == generate_alone(prompt(i), i, 0, 1000, new)
            assert engine.finished[i].reason == "length"
    assert engine.scheduler.snapshot().slots_used == 0


@pytest.mark.parametrize("culprit", range(8))
def test_a_request_that_fails_every_round_ends_alone(culprit: int) -> None:
    engine = Engine(make_limits(max_total_token_num=200, batch_max_tokens=64))
    for i in range(8):
        engine.add(add_request(i, prompt(i), 9, ignore_eos=True))
    failed = run(engine, {culprit})
    check(engine, 8, {culprit}, 9)
    assert len(failed) <= MAX_FAILURES + 3  # halves of 8, 4, 2


@pytest.mark.parametrize(("bad", "options"), [
    ({0, 7}, {}),
    ({2, 3, 4, 5}, {}),
    ({6}, {"chunked_prefill_size": 2, "batch_max_tokens": 6}),
    ({1}, {"max_total_token_num": 40, "schedule_policy": "aggressive"}),
    ({3}, {"disable_dynamic_prompt_cache": True}),
    ({0, 1, 2, 3, 4, 5, 6}, {}),
])  # fmt: skip
@pytest.mark.parametrize("sampling", [False, True])
def test_the_others_get_their_tokens(bad: set[int], options: dict[str, object], sampling: bool) -> None:
    engine = Engine(make_limits(**({"max_total_token_num": 200, "batch_max_tokens": 64} | options)))
    for i in range(8):
        engine.add(add_request(i, prompt(i), 9, ignore_eos=True))
    run(engine, bad, only_when_sampling=sampling)
    check(engine, 8, bad, 9)


def test_siblings_and_shared_prompts_are_told_apart() -> None:
    engine = Engine(make_limits(max_total_token_num=200, batch_max_tokens=64))
    engine.add(add_request([10, 11, 12], prompt(1), 5, n=3, ignore_eos=True))
    for i in range(3):
        engine.add(add_request(i, prompt(1), 5, ignore_eos=True))
    run(engine, {1})
    assert engine.finished[1].reason == "error"
    for i in (0, 2):
        assert engine.outputs[i] == generate_alone(prompt(1), i, 0, 1000, 5)
    assert {engine.finished[i].reason for i in (10, 11, 12)} == {"length"}


def test_who_arrives_meanwhile_waits_and_is_served() -> None:
    engine = Engine(make_limits(max_total_token_num=200, batch_max_tokens=64))
    for i in range(4):
        engine.add(add_request(i, prompt(i), 5, ignore_eos=True))
    for _ in range(MAX_FAILURES):
        engine.plan()
        engine.execute("broken")
        engine.apply()
        engine.execute()  # the resync
    engine.add(add_request(4, prompt(4), 5, ignore_eos=True))
    engine.plan()
    assert seeds_of(engine, engine.rounds[0]) == {0, 1}  # the older half
    assert not engine.plan()  # one round at a time
    run(engine, {3})
    check(engine, 5, {3}, 5)


def test_suspects_that_are_aborted_are_no_suspects() -> None:
    engine = Engine(make_limits(max_total_token_num=200, batch_max_tokens=64))
    for i in range(4):
        engine.add(add_request(i, prompt(i), 5, ignore_eos=True))
    for _ in range(MAX_FAILURES):
        engine.plan()
        engine.execute("broken")
        engine.apply()
        engine.execute()
    for i in (0, 1, 2):
        engine.scheduler.abort(i)
    assert run(engine, set()) == []
    assert engine.outputs[3] == generate_alone(prompt(3), 3, 0, 1000, 5)


def test_where_everything_fails_all_end_after_a_bounded_number_of_rounds() -> None:
    engine = Engine(make_limits(max_total_token_num=400, batch_max_tokens=64, running_max_req_size=16))
    for i in range(16):
        engine.add(add_request(i, prompt(i, 3), 5, ignore_eos=True))
    failed = run(engine, set(range(16)))
    check(engine, 16, set(range(16)), 5)
    assert len(failed) <= MAX_FAILURES + 2 * MAX_ENDED + 4


def test_running_out_of_memory_again_and_again_ends_who_is_too_large_alone() -> None:
    engine = Engine(make_limits(max_total_token_num=200, batch_max_tokens=16, chunked_prefill_size=16))
    for i in range(4):
        engine.add(add_request(i, prompt(i), 5, ignore_eos=True))
    for _ in range(1000):
        if engine.scheduler.has_work and not engine.rounds and not engine.results:
            engine.plan()
        if not engine.rounds and not engine.results:
            break
        message = engine.rounds[0] if engine.rounds else None
        inside = set() if message is None or isinstance(message, Resync) else seeds_of(engine, message)
        engine.execute("memory" if 2 in inside else "")
        engine.apply()
        engine.scheduler.check_invariants()
    check(engine, 4, {2}, 5)
