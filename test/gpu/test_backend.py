"""The backend on a GPU: graphs on and off, a crowd with aborts, no waiting for the device inside a round."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.near_tie import assert_same_or_near_tie, near_tie
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import changed, scheduler_config
from torch.profiler import ProfilerActivity, profile, record_function

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, max_new_tokens=40)
LIMITS = scheduler_config(
    max_total_token_num=60_000, max_req_total_len=1000, running_max_req_size=256, batch_max_tokens=2048,
    chunked_prefill_size=1024, max_waiting_requests=4096, eos_token_ids=[2],
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Tensor-core sizes, so that the usual kernels run."""
    path = make_checkpoint(
        tmp_path_factory.mktemp("gpu") / "model", "llama", dtype="bfloat16", std=0.05, hidden_size=512, head_dim=64,
        intermediate_size=1024, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=4, vocab_size=4096,
    )  # fmt: skip
    return ServerConfig(
        model_dir=str(path), device="cuda", max_total_token_num=60_000, running_max_req_size=256,
        max_req_total_len=1000, chunked_prefill_size=1024, batch_max_tokens=2048,
    )  # fmt: skip


@pytest.fixture(scope="module")
def backend(config):
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    return backend


def crowd(count, seed=0, **params):
    dice = random.Random(seed)
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9, "seed": 3},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.0, "frequency_penalty": 0.4},
        {"temperature": 0.7, "top_k": 20, "seed": 5, "logprobs": 5},
    ]
    return [
        Wanted(
            [dice.randrange(3, 4096) for _ in range(dice.choice([1, 7, 64, 129, 500]))],
            SamplingParams(**(kinds[i % len(kinds)] | params), max_new_tokens=dice.randrange(1, 100)),
            after_rounds=dice.randrange(count // 10 + 1),
            abort_after=dice.randrange(1, 40) if dice.random() < 0.2 else None,
        )
        for i in range(count)
    ]


def waits_inside(events, name):
    """Calls of the CUDA runtime or driver that wait for the device, while the range of this name runs; a copy that is
    not asynchronous waits too."""
    span = next(event.time_range for event in events if event.name == name)
    launches = [event.name for event in events if span.start <= event.time_range.start <= span.end]
    assert any(launch.startswith("cudaGraphLaunch") for launch in launches), "nothing of CUDA was recorded"
    return [launch for launch in launches if "Synchronize" in launch or launch == "cudaMemcpy"]


def test_graphs_change_no_token(config, backend):
    """The same kernels on the same numbers, but padded: in bf16 a batch size may choose another matrix kernel."""
    plain = ModeBackend(dataclasses.replace(config, disable_cudagraph=True), 0, 1)
    plain.init_model()
    wanted = [Wanted(w.prompt, GREEDY) for w in crowd(40)]
    sizes = changed(LIMITS, running_max_req_size=32)
    with_graphs = Serving(backend, sizes, wait=True).run(wanted)
    without = Serving(plain, sizes, wait=True).run(wanted)
    same = sum(a == b for a, b in zip(with_graphs, without))
    assert same >= 36, f"{same} of 40 answers are the same"


def test_two_thousand_mixed_requests_with_aborts_keep_the_books(backend):
    serving = Serving(backend, LIMITS, wait=True)
    answers = serving.run(crowd(2000, ignore_eos=True))
    assert not serving.failures
    assert len(serving.finished) == 2000
    for wanted, tokens in zip(crowd(2000, ignore_eos=True), answers):
        assert wanted.abort_after is not None or len(tokens) == wanted.params.max_new_tokens
    serving.scheduler.check_invariants()
    memory = backend.memory
    assert (memory.req_to_token[memory.max_rows] == memory.slots).all()
    assert all(torch.isfinite(layer[memory.slots]).all() for layer in memory.kv)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.8, "seed": 1},
        {"temperature": 0.9, "presence_penalty": 0.5, "logit_bias": {5: 1.0}, "seed": 2},
        {"temperature": 0.0, "min_new_tokens": 50, "logprobs": 4},
    ],
)
def test_a_decode_round_never_waits_for_the_device(backend, params):
    rows, context = 13, 50
    params = SamplingParams(**params, max_new_tokens=500)
    joins = [
        JoinRow(row, context, params, row, 0, [2], history_ids=int32(range(3, 3 + context)))
        for row in range(rows)
    ]
    ones = np.ones(rows, np.int32)
    backend.execute(
        Round(0, 0, int32(range(rows)), ones * context, ones * context, ones.astype(np.uint8),
              int32(list(range(3, 3 + context)) * rows), int32(range(rows * context)), joins)
    )  # fmt: skip

    def decode(step):
        slots = int32([5000 + 100 * row + step for row in range(rows)])
        kv_len = ones * (context + step + 1)
        return Round(step, rows, int32(range(rows)), ones, kv_len, ones.astype(np.uint8), EMPTY_INT32, slots)

    for step in range(3):  # plans are made, scratch memory grows
        backend.execute(decode(step))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [backend.submit(decode(step)) for step in range(3, 8)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(len(each.result().token_ids) == rows for each in pending)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        with record_function("submitting"):
            pending = [backend.submit(decode(step)) for step in range(8, 13)]
        assert all(len(each.result().token_ids) == rows for each in pending)
    assert waits_inside(found.events(), "submitting") == []


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_greedy_tokens_equal_transformers_or_part_at_a_near_tie(tmp_path, architecture):
    from transformers import AutoModelForCausalLM

    path = make_checkpoint(
        tmp_path / "model", architecture, dtype="bfloat16", hidden_size=256, intermediate_size=512, head_dim=64,
        num_attention_heads=4, num_key_value_heads=2, std=0.1,
    )  # fmt: skip
    config = ServerConfig(
        model_dir=str(path),
        device="cuda",
        max_total_token_num=4000,
        max_req_total_len=300,
        running_max_req_size=32,
    )
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    dice = random.Random(1)
    prompts = [[dice.randrange(6, 380) for _ in range(n)] for n in (1, 2, 31, 64, 129, 7, 90, 33)]
    small = dataclasses.replace(
        LIMITS, max_total_token_num=4000, max_req_total_len=300, running_max_req_size=32, batch_max_tokens=160,
        chunked_prefill_size=50,
    )  # fmt: skip
    answers = Serving(backend, small, wait=True).run([Wanted(prompt, GREEDY) for prompt in prompts])
    model, half = (
        AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().cuda()
        for dtype in (torch.float32, torch.bfloat16)
    )
    for prompt, tokens in zip(prompts, answers):
        ids = torch.tensor([prompt], device="cuda")
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
            logits, rounded = (each(out).logits[0, len(prompt) - 1 :].float() for each in (model, half))
        assert_same_or_near_tie(
            tokens, out[0, len(prompt) :].tolist(), logits.__getitem__, near_tie(rounded, logits)
        )


def test_memory_is_measured_and_almost_used_up(tmp_path):
    """With weights in a real shape: what is left free is the share that was to be left, less what rounds take."""
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    torch.cuda.empty_cache()
    config = ServerConfig(
        model_dir=str(tmp_path), device="cuda", load_way="dummy", data_type="bf16", mem_fraction=0.5
    )
    backend = ModeBackend(config, 0, 1)
    ready = backend.init_model()
    free, total = torch.cuda.mem_get_info()
    token_bytes = sum(layer.data[0].nbytes for layer in backend.memory.kv)
    assert ready.max_total_token_num * token_bytes > 0.3 * total
    assert 0.44 * total < free < 0.56 * total
