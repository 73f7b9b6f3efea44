"""Measured KV capacity: the largest round and the largest decode batch run before anything is reserved."""

import dataclasses

import pytest
from support.checkpoints import make_checkpoint
from support.recording_device import RecordingDevice

from lightllm.backend.device import DeviceMemory
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig

MIB = 1 << 20
ROUND, DECODE = 3 * MIB, 1 * MIB


class MeasuredDevice(RecordingDevice):
    """8 MiB are left of 64; a round needs 3 of them, a decode batch 1."""

    measures = True

    def __init__(self):
        super().__init__()
        self.measured = []

    def memory(self):
        return DeviceMemory(free=8 * MIB, total=64 * MIB)

    def peak_during(self, work):
        logits = work()
        self.measured.append(tuple(logits.shape))
        return ROUND if len(self.measured) == 1 else DECODE


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("sizing") / "model", num_hidden_layers=1)
    return ServerConfig(
        model_dir=str(path), data_type="fp32", cpu_threads=1, running_max_req_size=40, batch_max_tokens=64,
        chunked_prefill_size=64, max_req_total_len=50, graph_max_batch_size=8, mem_fraction=0.99,
    )  # fmt: skip


def start(config):
    device = MeasuredDevice()
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: device)
    return backend.init_model(), device


def test_what_rounds_and_graphs_need_is_left_free(config):
    ready, device = start(config)
    vocab = ready.vocab_size
    assert device.measured == [(40, vocab), (8, vocab)]  # as many logits as rows; the largest graph
    used = 64 * MIB - 8 * MIB
    needed = ROUND + 2 * 40 * vocab * 4 + DECODE + 8 * vocab * 4
    assert ready.max_total_token_num == (int(64 * MIB * 0.99) - used - needed) // ready.kv_bytes_per_token - 1


def test_without_graphs_nothing_is_left_for_them(config):
    with_graphs, _ = start(config)
    without, device = start(dataclasses.replace(config, disable_cudagraph=True))
    assert len(device.measured) == 1
    assert without.max_total_token_num > with_graphs.max_total_token_num


def test_a_given_size_is_not_measured(config):
    ready, device = start(dataclasses.replace(config, max_total_token_num=500))
    assert device.measured == [] and ready.max_total_token_num == 500
