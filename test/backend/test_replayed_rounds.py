"""Decode rounds that are replayed on a CPU: the tokens and log-probabilities of rounds that are called kernel by kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.model_zoo import make_zoo_model
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.ops.cpu.library import load_kernels
from lightllm.ops.cpu_kind import CpuKind, chosen
from lightllm.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif("replay" not in load_kernels(), reason="no kernels of our own")
LIMITS = scheduler_config(
    max_total_token_num=2000, max_req_total_len=400, running_max_req_size=6, batch_max_tokens=400,
    chunked_prefill_size=64, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip
WANTED = [
    Wanted([10, 20, 30], SamplingParams(temperature=0.0, max_new_tokens=30, ignore_eos=True)),
    Wanted([*range(6, 260)], SamplingParams(temperature=0.0, max_new_tokens=20, ignore_eos=True, logprobs=2)),
    Wanted([50], SamplingParams(temperature=0.9, seed=3, max_new_tokens=25, ignore_eos=True), after_rounds=4),
    Wanted(
        [*range(6, 200)], SamplingParams(temperature=0.0, max_new_tokens=9, ignore_eos=True), after_rounds=6
    ),
    Wanted(
        [*range(6, 262)], SamplingParams(temperature=0.8, seed=5, max_new_tokens=12, ignore_eos=True), n=2
    ),
]


def served(path: Path, data_type: str, **options: object) -> tuple[list[list[int]], ModeBackend]:
    backend = ModeBackend(
        ServerConfig(model_dir=str(path), data_type=data_type, max_total_token_num=2000, running_max_req_size=6,
                     max_req_total_len=400, cpu_threads=2, **options), 0, 1,
    )  # fmt: skip
    backend.init_model()
    return Serving(backend, LIMITS).run(WANTED), backend


REPLAYED = ("gemma2", "llama", "mistral", "qwen2", "qwen3", "internlm2", "phi3, short", "chatglm")
CALLED = ("mixtral", "bloom", "deepseek-v2", "minicpm", "cohere")
"""For whose layers torch computes something."""


@pytest.mark.parametrize(
    ("name", "data_type"), [*[(name, "bf16") for name in REPLAYED + CALLED], ("qwen3", "fp32")]
)
def test_tokens_are_the_same(name: str, data_type: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        path = make_zoo_model(tmp_path, name).path
        replayed, backend = served(path, data_type)
        called, other = served(path, data_type, disable_cudagraph=True)
    finally:
        torch.set_num_threads(before)
    assert replayed == called
    assert other.model.replays is None
    replays = backend.model.replays
    if data_type == "bf16" and chosen() == CpuKind.AVX512_BF16:
        assert bool(replays.refusal) == (name in CALLED), replays.refusal
        assert name in CALLED or len(replays._passes) >= 4


@pytest.mark.skipif(chosen() != CpuKind.AVX512_BF16, reason="the linears of other processors are torch's")
@pytest.mark.parametrize("quant_type", ["w8a8", "w4a16-32"])
def test_weights_in_few_bits_are_replayed_too(quant_type: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        path = make_checkpoint(tmp_path / "model", "llama", hidden_size=128, intermediate_size=256)
        replayed, backend = served(path, "bf16", quant_type=quant_type)
        called, _ = served(path, "bf16", quant_type=quant_type, disable_cudagraph=True)
    finally:
        torch.set_num_threads(before)
    assert replayed == called
    assert not backend.model.replays.refusal
