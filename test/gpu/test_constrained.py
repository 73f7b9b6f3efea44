"""Constrained rows on a GPU: obeyed with graphs and without, in rounds of 64 rows that wait for nothing but the last tokens."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.constrained import SCHEMAS
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config
from torch.profiler import ProfilerActivity, profile, record_function

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer

ROWS, VOCAB = 64, 4096
LIMITS = scheduler_config(
    max_total_token_num=20_000, max_req_total_len=300, running_max_req_size=ROWS, batch_max_tokens=512,
    chunked_prefill_size=256, max_waiting_requests=4096, eos_token_ids=[2],
)  # fmt: skip
SCHEMA, IS_VALUE = SCHEMAS["object"]
KINDS = [
    {"regular_constraint": r"[a-z ]{8,30}\.", "temperature": 0.0},
    {"guided_json": json.dumps(SCHEMA), "temperature": 0.9},
    {"guided_json": json.dumps(SCHEMA), "temperature": 0.0, "frequency_penalty": 0.5, "logprobs": 4},
    {"regular_constraint": "(yes|no|maybe), [0-9]{2,9}!", "temperature": 1.0, "top_p": 0.9, "raw_logprobs": True,
     "logprobs": 2},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.0, "ignore_eos": True},
]  # fmt: skip


def make_config(path, device="cuda"):
    """Tensor-core sizes; most rows of the vocabulary have no token in the tokenizer."""
    make_checkpoint(
        path, "llama", dtype="bfloat16", std=0.05, hidden_size=512, head_dim=64, intermediate_size=1024,
        num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=2, vocab_size=VOCAB,
    )  # fmt: skip
    return ServerConfig(
        model_dir=str(path), device=device, max_total_token_num=20_000, running_max_req_size=ROWS,
        max_req_total_len=300, chunked_prefill_size=256, batch_max_tokens=512,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("constrained") / "model")


def crowd(count):
    dice = random.Random(1)
    return [
        Wanted(
            [dice.randrange(6, VOCAB) for _ in range(dice.choice([1, 7, 64, 129]))],
            SamplingParams(**KINDS[i % len(KINDS)], seed=i, max_new_tokens=90),
            after_rounds=dice.randrange(count // 10 + 1),
        )
        for i in range(count)
    ]


def check_crowd(backend, tokenizer, count):
    """Runs the crowd: who ends has said what it was to say. How many constrained ones ended."""
    serving = Serving(backend, LIMITS, wait=True)
    ended = 0
    for number, (wanted, tokens) in enumerate(zip(crowd(count), serving.run(crowd(count)), strict=True)):
        params, reason = wanted.params, serving.finished[number].reason
        assert reason in ("stop", "length")
        if not params.constrained:
            continue
        assert max(tokens) < tokenizer.vocab_size
        if reason == "stop":
            ended += 1
            text = tokenizer.decode(tokens[:-1])
            if params.guided_json:
                assert IS_VALUE(json.loads(text)), text
            else:
                assert re.fullmatch(params.regular_constraint, text), text
    assert not serving.failures
    serving.scheduler.check_invariants()
    return ended


@pytest.mark.parametrize("graphs", [True, False])
def test_every_output_of_a_crowd_obeys_its_constraint(config, graphs):
    backend = ModeBackend(dataclasses.replace(config, disable_cudagraph=not graphs), 0, 1)
    backend.init_model()
    assert check_crowd(backend, load_tokenizer(config.model_dir), 300) > 100


def decoding(backend, context=20):
    """All rows joined, constrained and others by turns; the rounds that follow, one by one."""
    params = [SamplingParams(**KINDS[row % 2 * 4], seed=row, max_new_tokens=200) for row in range(ROWS)]
    prompt = int32(range(6, 6 + context))
    joins = [JoinRow(row, context, each, row, 0, [], history_ids=prompt) for row, each in enumerate(params)]
    ones, rows = np.ones(ROWS, np.int32), int32(range(ROWS))
    backend.execute(
        Round(0, 0, rows, ones * context, ones * context, ones.astype(np.uint8), np.tile(prompt, ROWS),
              int32(range(ROWS * context)), joins)
    )  # fmt: skip
    for step in range(1, 30):
        slots = int32(ROWS * context + ROWS * step + np.arange(ROWS))
        yield Round(
            step, ROWS, rows, ones, ones * (context + step), ones.astype(np.uint8), EMPTY_INT32, slots
        )


def test_a_round_waits_for_the_arrival_of_the_last_one_and_for_nothing_else(config):
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    rounds = decoding(backend)
    for _ in range(3):  # plans are made, scratch memory grows
        backend.execute(next(rounds))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [backend.submit(next(rounds)) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(len(each.result().token_ids) == ROWS for each in pending)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        with record_function("submitting"):
            pending = [backend.submit(next(rounds)) for _ in range(5)]
        assert all(len(each.result().token_ids) == ROWS for each in pending)
    span = next(event.time_range for event in found.events() if event.name == "submitting")
    calls = [event.name for event in found.events() if span.start <= event.time_range.start <= span.end]
    assert any(call.startswith("cudaGraphLaunch") for call in calls), "nothing of CUDA was recorded"
    assert not [
        call for call in calls if call in ("cudaMemcpy", "cudaStreamSynchronize", "cudaDeviceSynchronize")
    ]
    assert sum(call == "cudaEventSynchronize" for call in calls) <= 5
