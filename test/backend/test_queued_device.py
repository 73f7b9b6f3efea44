"""The GPU's code on a device that computes late: nothing is read, written again or given up before its time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.kernels import INTERPRETED
from support.queued_device import Queue, QueuedDevice, queued
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

from lightllm.backend import mode_backend
from lightllm.backend.device import upload
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.models import builder
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.linear import PlainLinear
from lightllm.ops.weight_rows import as_rows
from lightllm.protocol.arrays import int32
from lightllm.quantization import dense
from lightllm.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a GPU is late by itself")
LIMITS = scheduler_config(
    max_total_token_num=300, max_req_total_len=60, running_max_req_size=3, batch_max_tokens=24,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip
GREEDY = {"temperature": 0.0, "max_new_tokens": 3, "ignore_eos": True}
WANTED = [
    Wanted([10, 20, 30], SamplingParams(**GREEDY)),
    Wanted(list(range(6, 24)), SamplingParams(**GREEDY), after_rounds=1),
    Wanted([50], SamplingParams(**GREEDY | {"frequency_penalty": 0.8, "logprobs": 2}), after_rounds=2),
    Wanted([7, 8, 9], SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_new_tokens=3, ignore_eos=True)),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    path = make_checkpoint(
        tmp_path_factory.mktemp("queued") / "model", "qwen3", num_hidden_layers=1, num_key_value_heads=2
    )
    return ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=300, running_max_req_size=3,
        max_req_total_len=60, cpu_threads=1, graph_max_batch_size=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(config: ServerConfig) -> list[list[int]]:
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    return Serving(backend, LIMITS).run(WANTED)


@pytest.fixture
def gpu_code(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = TritonAttention()
    monkeypatch.setattr(
        mode_backend, "make_attention_backends", lambda *_: AttentionBackends(triton, triton, triton)
    )
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    for module in (builder, dense):
        monkeypatch.setattr(
            module, "pack_linear", lambda weight, bias: PlainLinear(as_rows(weight).on_device(), bias)
        )


def tokens(
    config: ServerConfig, make_device: Callable[[Queue], QueuedDevice] = QueuedDevice
) -> list[list[int]]:
    queue = Queue()
    device = make_device(queue)
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: device)
    backend.init_model()
    with queued(queue):
        found = Serving(backend, LIMITS, wait=True).run(WANTED)
    assert queue.ran > 200 and device.replays > 2
    return found


def test_tokens_are_those_of_a_cpu_that_computes_at_once(config, expected, gpu_code) -> None:
    assert tokens(config) == expected


class OneStagingBuffer(QueuedDevice):
    """Writes what it sends where it wrote what it sent before."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue)
        self._buffer = torch.empty(1 << 10, dtype=torch.uint8)

    def staging(self, nbytes: int) -> torch.Tensor:
        return self._buffer[:nbytes]


@pytest.mark.parametrize(("make", "arrived"), [(QueuedDevice, [1, 2]), (OneStagingBuffer, [3, 4])])
def test_staging_that_is_written_again_before_its_copy_shows(
    make: type[QueuedDevice], arrived: list[int]
) -> None:
    queue = Queue()
    device = make(queue)
    with queued(queue):
        (first,) = upload(device, int32([1, 2]))
        (second,) = upload(device, int32([3, 4]))
        assert device.download([first]).arrays()[0].tolist() == arrived
        assert second.tolist() == [3, 4]


def test_a_result_that_is_read_before_its_event_is_nonsense_and_a_buffer_holds_what_came_last() -> None:
    queue = Queue()
    device, buffer = QueuedDevice(queue), torch.zeros(2, dtype=torch.int64)
    with queued(queue):
        buffer.copy_(torch.tensor([5, 6]))
        arrival = device.download([buffer, buffer + 0])
        buffer.copy_(torch.tensor([7, 8]))
        assert not arrival.ready() and arrival._results[0].tolist() == [1, 1]
        assert [array.tolist() for array in arrival.arrays()] == [[7, 8], [5, 6]]
        assert arrival.ready()
