"""What an answer depends on: the request and its seed. Whatever runs beside it, comes before it or makes it pause, it is the
one that the request has alone: to the token where the model is computed in float32, or in bfloat16 with kernels of our own; but
for near ties where libraries add bfloat16 in an order that depends on what is computed together.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.arithmetic import ARITHMETICS, compute_bf16_weights_in
from support.near_tie import assert_same_or_near_tie, near_tie
from support.rounds_to_end import Serving, Wanted, sibling
from support.scheduler_config import changed, scheduler_config

import lightllm.demo
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.ops.cpu_kind import CpuKind, chosen
from lightllm.sampling_params import SamplingParams

DEMO = Path(lightllm.demo.__file__).parent
ALONE = scheduler_config(
    max_total_token_num=4000, max_req_total_len=400, running_max_req_size=16, batch_max_tokens=512,
    chunked_prefill_size=512, max_waiting_requests=1000, eos_token_ids=[2], disable_dynamic_prompt_cache=True,
)  # fmt: skip
CROWDED = changed(
    ALONE, max_total_token_num=400, batch_max_tokens=48, chunked_prefill_size=24, disable_dynamic_prompt_cache=False,
    schedule_policy="aggressive",
)  # fmt: skip
"""Prompts come in pieces, share their prefixes and do not all fit in, so that some have to pause."""


def traffic(count: int, new_tokens: int) -> list[Wanted]:
    """Greedy and sampled in turns, short and long prompts, some with a common prefix, arriving bit by bit."""
    dice = random.Random(3)
    shared = [dice.randrange(5, 1500) for _ in range(70)]
    wanted = []
    for index in range(count):
        own = [dice.randrange(5, 1500) for _ in range(dice.choice([1, 2, 9, 33, 80]))]
        prompt = shared[: dice.randrange(20, 70)] + own if index % 3 == 0 else own
        kind = {"temperature": 0.0} if index % 2 == 0 else {"temperature": 0.9, "top_p": 0.95, "seed": index}
        params = SamplingParams(
            **kind, max_new_tokens=dice.randrange(new_tokens // 2, new_tokens), ignore_eos=True
        )
        wanted.append(Wanted(prompt, params, after_rounds=dice.randrange(count)))
    return wanted


def alone_and_crowded(wanted: list[Wanted], kv_type: str = "None") -> tuple[list[list[int]], list[list[int]]]:
    config = ServerConfig(
        model_dir=str(DEMO), device="cpu", max_total_token_num=4000, running_max_req_size=16,
        max_req_total_len=400, cpu_threads=1, llm_kv_type=kv_type,
    )  # fmt: skip
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    alone = [Serving(backend, ALONE).run([dataclasses.replace(each, after_rounds=0)])[0] for each in wanted]
    serving = Serving(backend, CROWDED)
    crowded = serving.run(wanted)
    assert serving.failures == [] and serving.scheduler.pauses > 0
    assert serving.submitted < sum(len(tokens) for tokens in alone) / 2, "they hardly ran together"
    return alone, crowded


@functools.cache
def reference(dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype)


def assert_part_at_near_ties(prompt: list[int], alone: list[int], crowded: list[int]) -> None:
    ids = torch.tensor([prompt + alone])
    with torch.inference_mode():
        whole, half = (
            reference(dtype)(ids).logits[0, len(prompt) - 1 :].float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert_same_or_near_tie(crowded, alone, whole.__getitem__, near_tie(half, whole))


@pytest.mark.parametrize(
    ("arithmetic", "count", "new_tokens"),
    [("float32", 14, 44), ("bfloat16", 10, 24)]
    + [pytest.param(arithmetic, 64, 120, marks=pytest.mark.slow) for arithmetic in ARITHMETICS],
)
def test_an_answer_is_the_one_that_the_request_has_alone(
    monkeypatch: pytest.MonkeyPatch, arithmetic: str, count: int, new_tokens: int
) -> None:
    compute_bf16_weights_in(monkeypatch, arithmetic)
    wanted = traffic(count, new_tokens)
    alone, crowded = alone_and_crowded(wanted)
    if arithmetic == "float32" or chosen() == CpuKind.AVX512_BF16:
        assert crowded == alone
        return
    for each, one, other in zip(wanted, alone, crowded, strict=True):
        if one != other and each.params.temperature == 0.0:
            assert_part_at_near_ties(each.prompt, one, other)
    assert sum(one[:3] == other[:3] for one, other in zip(alone, crowded)) > count // 2


@pytest.mark.skipif(
    chosen() != CpuKind.AVX512_BF16, reason="libraries add in an order that depends on the batch"
)
@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_and_so_it_is_with_kv_memory_in_8_bits(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Whatever the borders of chunks, cached prefixes and pauses: a chunk's own keys are read as codes too."""
    compute_bf16_weights_in(monkeypatch, "bfloat16")
    alone, crowded = alone_and_crowded(traffic(count, 24), "int8kv")
    assert crowded == alone


ROWS = 32
KINDS = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    {"temperature": 0.0, "regular_constraint": "[a-z ]{20,60}[.]"},
    {
        "temperature": 0.8,
        "guided_json": '{"type": "array", "items": {"type": "integer"}, "minItems": 6, "maxItems": 9}',
        "seed": 4,
    },
    {"temperature": 1.0, "top_k": 30, "repetition_penalty": 1.1, "seed": 8},
]


def crowd_of_all_kinds(count: int, dice: random.Random) -> list[Wanted]:
    """Of each kind, every fourth with four answers; some prompts have a prefix in common that spans blocks and pieces of attention."""
    shared = [dice.randrange(5, 1500) for _ in range(300)]
    wanted = []
    for index in range(count):
        own = [dice.randrange(5, 1500) for _ in range(dice.choice([1, 7, 40, 150, 290]))]
        prompt = shared[: dice.randrange(60, 300)] + own if index % 2 else own
        kind = KINDS[index % len(KINDS)]
        params = SamplingParams(**kind, max_new_tokens=dice.randrange(20, 70), ignore_eos="seed" not in kind)
        n = 4 if index % 4 == 1 and "seed" in kind else 1
        wanted.append(Wanted(prompt, params, after_rounds=dice.randrange(count), n=n))
    return wanted


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_request_among_31_others_says_what_it_says_alone(
    monkeypatch: pytest.MonkeyPatch, arithmetic: str
) -> None:
    """Greedy, seeded, constrained, penalised, and siblings: with any chunk borders, cached prefixes and pauses."""
    if arithmetic == "bfloat16" and chosen() != CpuKind.AVX512_BF16:
        pytest.skip("libraries add bfloat16 in an order that depends on what is computed together")
    compute_bf16_weights_in(monkeypatch, arithmetic)
    config = ServerConfig(
        model_dir=str(DEMO), device="cpu", max_total_token_num=9000, running_max_req_size=ROWS, max_req_total_len=700,
        cpu_threads=1,
    )  # fmt: skip
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    alone = changed(
        ALONE,
        max_total_token_num=9000,
        max_req_total_len=700,
        batch_max_tokens=1024,
        chunked_prefill_size=1024,
    )
    wanted = crowd_of_all_kinds(80, random.Random(5))
    expected: dict[int, list[int]] = {}
    for number, each in enumerate(wanted):
        serving = Serving(backend, alone)
        serving.run([dataclasses.replace(each, after_rounds=0)])
        expected |= {sibling(number, index): serving.tokens[sibling(0, index)] for index in range(each.n)}
    assert len(expected) > len(wanted) and sum(map(len, expected.values())) > 15 * len(expected)
    for seed, (budget, chunk, slots) in enumerate(
        [(512, 512, 9000), (96, 61, 5000), (200, 200, 3000), (45, 13, 2500)]
    ):
        limits = changed(
            alone, running_max_req_size=ROWS, max_total_token_num=slots, batch_max_tokens=budget, chunked_prefill_size=chunk,
            disable_dynamic_prompt_cache=False, schedule_policy="aggressive",
        )  # fmt: skip
        dice = random.Random(seed)
        arriving = [dataclasses.replace(each, after_rounds=dice.randrange(60)) for each in wanted]
        serving = Serving(backend, limits)
        serving.run(arriving)
        assert serving.failures == []
        assert slots > 3000 or serving.scheduler.pauses > 0
        assert serving.tokens == expected, f"rounds of {budget}, chunks of {chunk}, {slots} slots"
