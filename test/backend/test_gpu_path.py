"""A whole backend on the GPU's code: Triton kernels under the interpreter, the GPU's attention plan, graphs and padding.

Tokens must be those of the CPU's code, token for token, in float32.
"""

import dataclasses
import os
import sys

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.kernels import INTERPRETED
from support.model_zoo import make_zoo_model
from support.recording_device import RecordingDevice
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

import lightllm
from lightllm.backend import device, mode_backend
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.triton import prefill_attention
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test/gpu does this on a GPU")
LIMITS = scheduler_config(
    max_total_token_num=300, max_req_total_len=60, running_max_req_size=4, batch_max_tokens=24,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip


@pytest.fixture
def gpu_code(monkeypatch):
    """Tensors say that they are on a GPU, and the operations choose their kernels. A list of what attention's kernels
    were asked with, one for each layer and phase."""
    asked = []

    class Watched(TritonAttention):
        def decode(self, call):
            asked.append(call.metadata)
            super().decode(call)

        def prefill(self, call):
            asked.append(call.metadata)
            super().prefill(call)

    backends = AttentionBackends(Watched(), Watched(), Watched())
    monkeypatch.setattr(mode_backend, "make_attention_backends", lambda *_: backends)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    return asked


@pytest.mark.parametrize("architecture", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_tokens_are_those_of_the_cpu(tmp_path, request, architecture):
    path = make_checkpoint(tmp_path / "model", architecture, num_hidden_layers=1, num_key_value_heads=2)
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=300, running_max_req_size=4,
        max_req_total_len=60, cpu_threads=1, graph_max_batch_size=3, graph_split_batch_size=1, graph_grow_step_size=2,
    )  # fmt: skip
    greedy = {"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": True}
    wanted = [
        Wanted([10, 20, 30], SamplingParams(**greedy)),
        Wanted(list(range(6, 27)), SamplingParams(**greedy), after_rounds=1),
        Wanted([50], SamplingParams(**greedy | {"frequency_penalty": 0.8}), after_rounds=2),
        Wanted([7, 8, 9, 10], SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_new_tokens=3, ignore_eos=True)),
        Wanted([11, 12], SamplingParams(temperature=1.0, seed=6, max_new_tokens=3, ignore_eos=True), after_rounds=3),
    ]  # fmt: skip
    plain = ModeBackend(config, 0, 1)
    plain.init_model()
    expected = Serving(plain, LIMITS).run(wanted)
    asked = request.getfixturevalue("gpu_code")
    recording = RecordingDevice()
    backend = ModeBackend(dataclasses.replace(config), 0, 1, open_device=lambda name, index: recording)
    backend.init_model()
    assert Serving(backend, LIMITS).run(wanted) == expected
    assert recording.replays > 2
    assert len(asked) > 10


def test_kv_memory_in_8_bits_has_the_tokens_of_the_cpu_and_chunks_read_their_own_codes(tmp_path, request):
    path = make_zoo_model(tmp_path / "model", "qwen3", num_hidden_layers=1).path
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=300, running_max_req_size=4,
        max_req_total_len=60, cpu_threads=1, disable_cudagraph=True, llm_kv_type="int8kv",
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_new_tokens=3, ignore_eos=True)
    prompt = list(range(6, 27))
    wanted = [
        Wanted([10, 20, 30], params),
        Wanted(prompt, params, after_rounds=2),
        Wanted([*prompt[:18], 40], params, after_rounds=8),
    ]
    plain = ModeBackend(config, 0, 1)
    plain.init_model()
    expected = Serving(plain, LIMITS).run(wanted)
    asked = request.getfixturevalue("gpu_code")
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: RecordingDevice())
    backend.init_model()
    assert all(layer.data.dtype == torch.int8 for layer in backend.memory.kv)
    assert Serving(backend, LIMITS).run(wanted) == expected
    assert len(asked) > 5


@pytest.mark.parametrize("name", ["qwen3", pytest.param("bloom", marks=pytest.mark.slow)])
def test_prompts_without_a_cached_prefix_are_read_dense(tmp_path, monkeypatch, request, name):
    """Of models with and without rotary positions; rounds in which a chunk has a prefix are read by slot."""
    path = make_zoo_model(tmp_path / "model", name, num_hidden_layers=2).path
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=300, running_max_req_size=4,
        max_req_total_len=60, cpu_threads=1, disable_cudagraph=True,
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_new_tokens=3, ignore_eos=True)
    prompt = list(range(6, 27))
    wanted = [
        Wanted([10, 20, 30], params),
        Wanted(prompt, params, after_rounds=2),  # two chunks, the first beside a decode entry
        Wanted([*prompt[:18], 40, 41], params, after_rounds=8),  # 18 tokens of it are cached
    ]
    plain = ModeBackend(config, 0, 1)
    plain.init_model()
    expected = Serving(plain, LIMITS).run(wanted)
    asked, seen, launch = request.getfixturevalue("gpu_code"), [], prefill_attention.launch_prefill

    def watch(q, k, v, metadata, spec, out, context, coded=None):
        first = metadata.num_decode
        lengths = metadata.q_start.diff()[first:]
        seen.append((bool((lengths == metadata.kv_len[first:]).all()), context is not None, len(k)))
        launch(q, k, v, metadata, spec, out, context, coded)

    monkeypatch.setattr(prefill_attention, "launch_prefill", watch)
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: RecordingDevice())
    backend.init_model()
    asked.clear()
    seen.clear()
    assert Serving(backend, LIMITS).run(wanted) == expected
    assert all(dense == fresh for fresh, dense, _ in seen)
    assert {dense for _, dense, _ in seen} == {True, False}
    assert any(metadata.num_decode and metadata.num_prefill and metadata.no_prefix for metadata in asked)
    # Dense tensors are those of the batch, the others KV memory.
    assert all((tokens < 300) == dense for _, dense, tokens in seen)


ASKING = [
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "unique",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
]
"""Methods of a tensor that wait for a GPU."""
OURS, TORCH = (os.path.dirname(package.__file__) + os.sep for package in (lightllm, torch))


@pytest.fixture
def no_questions(monkeypatch):
    """A list that collects where this project's code asks a tensor for its values; Triton's interpreter may."""
    asked = []

    def watch(name):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            caller = sys._getframe(1)
            while caller.f_code.co_filename.startswith(TORCH):
                caller = caller.f_back
            place = caller.f_code.co_filename
            if place.startswith(OURS) and place != device.__file__:  # which reads staging memory
                asked.append(f"{name} in {place}:{caller.f_lineno}")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, method)

    for name in ASKING:
        watch(name)
    return asked


@pytest.mark.parametrize(
    "graphs,params",
    [
        (True, {"temperature": 0.0}),
        (False, {"temperature": 0.9, "top_p": 0.8, "seed": 1, "logprobs": 3}),
        (False, {"temperature": 0.0, "frequency_penalty": 0.5, "logit_bias": {5: 1.0}, "min_new_tokens": 9,
                 "raw_logprobs": True, "exponential_decay_length_penalty": (1, 1.5),
                 "allowed_token_ids": list(range(4, 90))}),
    ],
)  # fmt: skip
def test_a_decode_round_asks_the_device_for_nothing(tmp_path, gpu_code, request, params, graphs):
    path = make_checkpoint(tmp_path / "model", num_hidden_layers=1, num_key_value_heads=2)
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=300, running_max_req_size=4,
        max_req_total_len=60, cpu_threads=1, graph_max_batch_size=2, disable_cudagraph=not graphs,
    )  # fmt: skip
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: RecordingDevice(late=True))
    backend.init_model()
    params, prompt = SamplingParams(**params, max_new_tokens=30), [7, 8, 9]
    joins = [JoinRow(row, 3, params, row, 0, [2], history_ids=int32(prompt)) for row in range(2)]
    ones = np.ones(2, np.int32)
    first = Round(
        0,
        0,
        int32([0, 1]),
        ones * 3,
        ones * 3,
        np.ones(2, np.uint8),
        int32(prompt * 2),
        int32(range(6)),
        joins,
    )
    backend.execute(first)
    asked = request.getfixturevalue("no_questions")
    pending = []
    for step in range(3):
        kv_len, slots = ones * (4 + step), int32([10 + step, 20 + step])
        pending.append(
            backend.submit(Round(1, 2, int32([0, 1]), ones, kv_len, np.ones(2, np.uint8), EMPTY_INT32, slots))
        )
    assert asked == []
    assert all(len(each.result().token_ids) == 2 for each in pending)
