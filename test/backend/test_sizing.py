"""Measured KV capacity: the largest round and the largest decode batch run before anything is reserved."""

import dataclasses

import numpy as np
import pytest
from support.checkpoints import make_checkpoint
from support.model_zoo import make_zoo_model
from support.recording_device import RecordingDevice

from lightllm.backend.device import DeviceMemory
from lightllm.backend.kv_memory import Rows
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.models import mla
from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

MIB = 1 << 20
ROUND, DECODE = 3 * MIB, 1 * MIB
TOKEN_BYTES = 2 * 4 * 16 * 4
"""Keys and values of four heads of 16 float32 numbers, in one layer."""


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
    needed += Rows(40, 50, vocab).bytes_beside(ready.max_total_token_num)
    assert ready.max_total_token_num == (int(64 * MIB * 0.99) - used - needed) // TOKEN_BYTES - 1


def test_what_the_first_rounds_load_and_keep_is_not_free(config, monkeypatch):
    """Libraries' code and workspaces: 2 MiB are gone once a round has run."""
    usual, _ = start(config)

    def memory(device):
        return DeviceMemory(free=(6 if device.measured else 8) * MIB, total=64 * MIB)

    monkeypatch.setattr(MeasuredDevice, "memory", memory)
    ready, _ = start(config)
    assert usual.max_total_token_num - ready.max_total_token_num == pytest.approx(
        2 * MIB / TOKEN_BYTES, abs=60
    )


def test_without_graphs_nothing_is_left_for_them(config):
    with_graphs, _ = start(config)
    without, device = start(dataclasses.replace(config, disable_cudagraph=True))
    assert len(device.measured) == 1
    assert without.max_total_token_num > with_graphs.max_total_token_num


def test_a_given_size_is_not_measured(config):
    ready, device = start(dataclasses.replace(config, max_total_token_num=500))
    assert device.measured == [] and ready.max_total_token_num == 500


def behind_prefixes(rows, cached):
    """A round in which each row computes one token behind `cached` ones that other requests have left."""
    ones = np.ones(rows, dtype=np.int32)
    params = SamplingParams(temperature=0.0)
    joins = [
        JoinRow(row, cached + 1, params, row, 0, [], prefix_slots=int32(range(cached))) for row in range(rows)
    ]
    return Round(
        seq=0, num_decode=0, rows=int32(range(rows)), q_len=ones, kv_len=ones * (cached + 1),
        samples=np.ones(rows, np.uint8), token_ids=ones * 5, slots=int32(range(cached, cached + rows)), joins=joins,
    )  # fmt: skip


def test_cached_prefixes_that_latent_attention_expands_are_measured(tmp_path, monkeypatch):
    """However many requests of a round have a cached prefix: no more is expanded at a time than while measuring."""
    expanded, expand = [], mla.mla_context

    def watch(kv, plan):
        context = expand(kv, plan)
        expanded.append(len(context))
        return context

    monkeypatch.setattr(mla, "mla_context", watch)
    monkeypatch.setattr(mla, "EXPANDED_TOKENS", 200)
    path = make_zoo_model(tmp_path / "model", "deepseek-v3").path
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", cpu_threads=1, running_max_req_size=40, batch_max_tokens=64,
        chunked_prefill_size=64, max_req_total_len=60, disable_cudagraph=True, mem_fraction=0.99,
    )  # fmt: skip
    device = MeasuredDevice()
    measure = device.peak_during
    device.peak_during = lambda work: (measure(work), measured.append(max(expanded)))[0]
    measured = []
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: device)
    backend.init_model()
    expanded.clear()
    backend.execute(behind_prefixes(40, 50))
    assert measured and max(expanded) <= measured[0]
    assert sum(expanded) > 40 * 51  # in every layer, in pieces
