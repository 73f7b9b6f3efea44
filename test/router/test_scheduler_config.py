"""Defaults of lengths, chunks and rounds, and the options that contradict each other."""

from __future__ import annotations

import pytest

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.router.scheduler_config import resolve


def config(slots=100_000, device="cpu", context=2048, **options):
    return resolve(ServerConfig(**options), slots, device, context, [2])


@pytest.mark.parametrize(("device", "chunk", "batch"), [("cpu", 512, 512), ("cuda:0", 4096, 5120)])
def test_chunks_follow_the_device(device, chunk, batch):
    found = config(device=device)
    assert (found.chunked_prefill_size, found.batch_max_tokens) == (chunk, batch)
    assert not found.whole_prompts


@pytest.mark.parametrize(
    ("context", "slots", "option", "longest"),
    [
        (2048, 10**6, None, 2048),
        (131072, 10**6, None, 16384),
        (131072, 10**6, 40000, 40000),
        (2048, 500, None, 500),
    ],
)
def test_longest_request_is_what_model_memory_and_option_allow(context, slots, option, longest):
    assert config(slots, context=context, max_req_total_len=option).max_req_total_len == longest


def test_without_chunking_the_longest_request_fits_one_round():
    found = config(disable_chunked_prefill=True)
    assert found.batch_max_tokens == found.chunked_prefill_size == 2048 and found.whole_prompts
    with pytest.raises(InvalidOption, match="1000.*2048"):
        config(disable_chunked_prefill=True, batch_max_tokens=1000)


def test_small_rounds_shrink_the_default_chunk_but_not_a_given_one():
    assert config(batch_max_tokens=100).chunked_prefill_size == 100
    with pytest.raises(InvalidOption, match="100.*200"):
        config(batch_max_tokens=100, chunked_prefill_size=200)


def test_a_small_chunk_on_a_cpu_leaves_the_round_its_size():
    found = config(chunked_prefill_size=16)
    assert (found.chunked_prefill_size, found.batch_max_tokens) == (16, 512)
    assert config(chunked_prefill_size=1000).batch_max_tokens == 1000


def test_rows_fit_into_a_round():
    assert config(running_max_req_size=1000).max_rows == 512


def test_other_options_are_those_that_were_given():
    found = config(schedule_policy="aggressive", max_req_input_len=100)
    assert found.options == ServerConfig(schedule_policy="aggressive", max_req_input_len=100)
    assert found.with_options(ttft_slo=2.0).options.ttft_slo == 2.0
