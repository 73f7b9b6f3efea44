"""Spans of a prompt that no chunk may cut: an image whose tokens attend to each other in both directions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support.router_device import Engine, add_request, generate_alone, make_limits

from lightllm.errors import InvalidParameter, PromptTooLong
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest
from lightllm.protocol.rounds import Round


def with_spans(message: AddRequest, *bounds: int) -> AddRequest:
    return msgspec.structs.replace(message, uncut=int32(list(bounds)))


def chunk_ends(rounds: list[Round], row_of: dict[int, int]) -> dict[int, list[int]]:
    """seed -> context lengths with which its prefill chunks ended."""
    ends: dict[int, list[int]] = {seed: [] for seed in row_of.values()}
    for round_ in rounds:
        row_of |= {join.row: join.seed for join in round_.joins}
        for entry in range(round_.num_decode, len(round_.rows)):
            ends.setdefault(row_of[int(round_.rows[entry])], []).append(int(round_.kv_len[entry]))
    return ends


def cut(ends: list[int], bounds: list[int]) -> list[int]:
    """Ends that lie inside a span."""
    return [e for e in ends for s, t in zip(bounds[::2], bounds[1::2], strict=True) if s < e < t]


def run(engine: Engine) -> dict[int, list[int]]:
    engine.run()
    return chunk_ends([r for r in engine.sent if isinstance(r, Round)], {})


def test_a_chunk_ends_before_a_span_that_it_would_cut_and_the_next_one_is_as_long_as_the_span() -> None:
    engine = Engine(make_limits(batch_max_tokens=16, chunked_prefill_size=8))
    engine.add(with_spans(add_request(1, list(range(1, 31)), 2, ignore_eos=True), 5, 17, 17, 20, 23, 27))
    assert run(engine) == {1: [5, 17, 23, 30]}
    assert engine.outputs[1] == generate_alone(list(range(1, 31)), 1, 0, 1000, 2)


def test_a_span_waits_for_a_round_that_has_room_for_it() -> None:
    engine = Engine(make_limits(batch_max_tokens=8, chunked_prefill_size=4, running_max_req_size=8))
    for i in range(1, 4):
        engine.add(add_request(i, [i * 100], 6 + i, ignore_eos=True))
    engine.add(with_spans(add_request(9, list(range(1, 13)), 2, ignore_eos=True), 2, 9))
    assert run(engine)[9] == [2, 9, 12]
    whole = next(r for r in engine.sent if 9 - 2 in r.q_len[r.num_decode :].tolist())
    assert whole.num_decode <= 1  # three streams and seven tokens are more than a round may have


def test_after_a_round_ran_out_of_memory_a_span_longer_than_the_halved_budget_is_computed_alone() -> None:
    engine = Engine(make_limits(batch_max_tokens=16, chunked_prefill_size=16))
    engine.add(with_spans(add_request(1, list(range(1, 31)), 2, ignore_eos=True), 14, 28))
    engine.plan()
    engine.execute("memory")
    assert run(engine)[1][-2:] == [28, 30]
    assert engine.outputs[1] == generate_alone(list(range(1, 31)), 1, 0, 1000, 2)


@pytest.mark.parametrize("policy", ["mixed", "prefill_first", "decode_first"])
def test_random_prompts_with_spans_are_never_cut_and_say_what_they_say_alone(policy: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        budget = int(rng.integers(6, 24))
        limits = make_limits(
            batch_max_tokens=budget, chunked_prefill_size=int(rng.integers(1, budget + 1)), round_policy=policy,
            max_total_token_num=int(rng.integers(80, 160)), max_req_total_len=64, schedule_policy="aggressive",
        )  # fmt: skip
        engine = Engine(limits)
        bounds: dict[int, list[int]] = {}
        prompts: dict[int, list[int]] = {}
        shared = rng.integers(1, 900, 60).tolist()
        for i in range(6):
            prompts[i] = (
                shared[: int(rng.integers(0, 30))] + rng.integers(1, 900, rng.integers(1, 25)).tolist()
            )
            points = np.sort(rng.integers(0, len(prompts[i]) + 1, 2 * int(rng.integers(1, 4)))).tolist()
            bounds[i] = [
                point
                for s, e in zip(points[::2], points[1::2], strict=True)
                for point in (s, min(e, s + budget))
            ]
            message = add_request(i, prompts[i], int(rng.integers(1, 9)), ignore_eos=True)
            engine.add(with_spans(message, *bounds[i]))
        for seed, ends in run(engine).items():
            # What a paused request says counts as its context, too: only ends within the prompt matter.
            assert cut(ends, bounds[seed]) == []
        for i, prompt in prompts.items():
            assert engine.outputs[i] == generate_alone(prompt, i, 0, 1000, len(engine.outputs[i]))


@pytest.mark.parametrize("bounds", [[3], [-1, 4], [2, 40], [6, 4], [2, 8, 5, 9]])
def test_spans_that_are_none_are_refused(bounds: list[int]) -> None:
    with pytest.raises(InvalidParameter, match="no ascending spans"):
        Engine(make_limits()).add(with_spans(add_request(1, list(range(1, 21)), 2), *bounds))


def test_a_span_longer_than_a_round_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong, match=r"17 tokens .* at most 16 \(batch_max_tokens\)"):
        Engine(make_limits(batch_max_tokens=16)).add(with_spans(add_request(1, list(range(1, 31)), 2), 3, 20))
