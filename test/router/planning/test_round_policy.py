"""Which rounds prefill, seen from the rounds that are sent."""

from __future__ import annotations

import pytest
from support.router_device import Engine, add_request, generate_alone, make_limits

POLICIES = ["mixed", "prefill_first", "decode_first"]


def prompt(length: int, start: int = 1) -> list[int]:
    return list(range(start, start + length))


def make_engine(policy: str, **changes) -> Engine:
    values = {
        "max_total_token_num": 400, "max_req_total_len": 200, "batch_max_tokens": 16, "chunked_prefill_size": 8,
        "round_policy": policy, "router_max_wait_tokens": 3,
    }  # fmt: skip
    return Engine(make_limits(**(values | changes)))


def shapes(engine: Engine, since: int = 0) -> list[tuple[int, int]]:
    """(decode rows, prefill tokens) of each round from number `since` on."""
    return [(r.num_decode, len(r.token_ids)) for r in engine.sent[since:]]


def two_streams_then_a_long_prompt(engine: Engine) -> list[tuple[int, int]]:
    """Rounds from the arrival of a prompt of 40 tokens on, while two streams decode."""
    for i in (1, 2):
        engine.add(add_request(i, prompt(4, 50 * i), 30, ignore_eos=True))
    for _ in range(5):
        engine.plan(), engine.execute(), engine.apply()
    before = len(engine.sent)
    engine.add(add_request(3, prompt(40, 500), 3, ignore_eos=True))
    engine.run()
    for i, (tokens, new) in enumerate([(prompt(4, 50), 30), (prompt(4, 100), 30), (prompt(40, 500), 3)], 1):
        assert engine.outputs[i] == generate_alone(tokens, i, 0, 1000, new)
    return shapes(engine, before)


def test_mixed_streams_have_a_token_in_every_round_beside_a_long_prompt():
    rounds = two_streams_then_a_long_prompt(make_engine("mixed"))
    assert rounds[:6] == [(2, 8)] * 5 + [(3, 0)]


def test_prefill_first_streams_stall_until_the_prompt_is_complete():
    rounds = two_streams_then_a_long_prompt(make_engine("prefill_first"))
    assert rounds[:6] == [(0, 8)] * 5 + [(3, 0)]


def test_decode_first_streams_get_their_rounds_between_two_chunks():
    rounds = two_streams_then_a_long_prompt(make_engine("decode_first"))
    # The streams have had more than three rounds already, so that the first chunk is due at once.
    assert rounds[:17] == ([(0, 8)] + [(2, 0)] * 3) * 4 + [(0, 8)]
    assert rounds[17] == (3, 0)


def test_decode_first_nobody_waits_while_nobody_decodes():
    engine = make_engine("decode_first")
    engine.add(add_request(1, prompt(40), 2, ignore_eos=True))
    engine.run()
    assert shapes(engine) == [(0, 8)] * 5 + [(1, 0)]


def test_decode_first_nobody_enters_before_its_turn():
    engine = make_engine("decode_first")
    engine.add(add_request(1, prompt(4), 30, ignore_eos=True))
    engine.plan()
    engine.add(add_request(2, prompt(4, 100), 3, ignore_eos=True))
    engine.run()
    assert shapes(engine)[:5] == [(0, 4), (1, 0), (1, 0), (1, 0), (0, 4)]


@pytest.mark.parametrize("policy", POLICIES)
def test_prompts_in_rounds_of_their_own_have_the_whole_token_budget(policy):
    engine = make_engine(policy, batch_max_tokens=10)
    for i in range(1, 5):
        engine.add(add_request(i, prompt(2, 10 * i), 20, ignore_eos=True))
    for _ in range(6):
        engine.plan(), engine.execute(), engine.apply()
    before = len(engine.sent)
    for i in (5, 6):
        engine.add(add_request(i, prompt(5, 50 * i), 20, ignore_eos=True))
    engine.run()
    assert next(shape for shape in shapes(engine, before) if shape[1]) == (
        (4, 6) if policy == "mixed" else (0, 10)
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_without_chunked_prefill_no_prompt_is_ever_split(policy):
    engine = make_engine(
        policy, batch_max_tokens=40, chunked_prefill_size=40, max_req_total_len=40, router_max_wait_tokens=1
    )
    lengths = (30, 5, 38, 12, 20, 1)
    for i, length in enumerate(lengths, 1):
        engine.add(add_request(i, prompt(length, 100 * i), 2, ignore_eos=True))
        engine.plan(), engine.execute(), engine.apply()
    engine.run()
    for round_ in engine.sent:
        assert (round_.samples[round_.num_decode :] == 1).all()
    for i, length in enumerate(lengths, 1):
        assert engine.outputs[i] == generate_alone(prompt(length, 100 * i), i, 0, 1000, 2)


@pytest.mark.parametrize(("policy", "enter"), [("mixed", 1), ("prefill_first", 2), ("decode_first", 1)])
def test_streams_that_stand_still_during_a_prefill_leave_it_more_memory(policy, enter):
    """Each of the stream's rounds during the prefill is one in which the new request is still there at its end."""
    engine = make_engine(policy, max_total_token_num=97, max_req_total_len=97)
    engine.add(add_request(1, prompt(10), 30, ignore_eos=True))
    for _ in range(6):
        engine.plan(), engine.execute(), engine.apply()
    engine.add(add_request(2, prompt(40, 100), 20, ignore_eos=True))
    engine.plan()
    assert engine.scheduler.snapshot().running == enter
    engine.run()
    assert engine.scheduler.pauses == 0
