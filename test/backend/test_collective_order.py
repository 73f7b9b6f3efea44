"""Every rank enqueues the same operations with the others in the same order, in each captured graph and in each round: on GPUs
nobody notices otherwise, the ranks wait for each other for ever. Without GPUs or other ranks: what they would enqueue is noted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.ranks import make_rendezvous
from support.recording_device import RecordedGraph, RecordingDevice
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.distributed.tp_group import TpGroup
from lightllm.sampling_params import SamplingParams

RANKS = 4
LIMITS = scheduler_config(
    max_total_token_num=300, max_req_total_len=60, running_max_req_size=4, batch_max_tokens=24,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip
KINDS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 5},
    {"temperature": 0.0, "frequency_penalty": 0.8, "logprobs": 2},
    {"temperature": 1.0, "seed": 6, "prompt_logprobs": 1},
]
WANTED = [
    Wanted(
        list(range(6, 6 + 7 * n)),
        SamplingParams(**kind, max_new_tokens=5, ignore_eos=True),
        after_rounds=2 * n,
    )
    for n, kind in enumerate(KINDS, start=1)
]


class Noted:
    """`Collectives` of a rank that is alone: the others would have what it has."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def _note(self, name: str, x: torch.Tensor) -> None:
        self.operations.append((name, tuple(x.shape), x.dtype))

    def all_reduce(self, x: torch.Tensor) -> None:
        self._note("all_reduce", x)

    def all_gather(self, parts: list[torch.Tensor], x: torch.Tensor) -> None:
        self._note("all_gather", x)
        for part in parts:
            part.copy_(x)

    def broadcast(self, x: torch.Tensor) -> None:
        self._note("broadcast", x)

    def close(self) -> None:
        pass


class NotingDevice(RecordingDevice):
    def __init__(self, noted: Noted) -> None:
        super().__init__()
        self._noted = noted
        self.captured: list[list[tuple[str, tuple[int, ...], torch.dtype]]] = []

    def capture(self, work):
        before = len(self._noted.operations)
        replay = super().capture(work)
        assert isinstance(self.graphs[-1], RecordedGraph)
        self.captured.append(self._noted.operations[before:])
        return replay


def operations_of(rank: int, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """What rank `rank` enqueues: at the start, in each graph, and while it serves."""
    noted = Noted()
    group = TpGroup(rank, RANKS)
    group._links = noted
    monkeypatch.setattr(TpGroup, "join", lambda rendezvous, device: group)
    device = NotingDevice(noted)
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=300, running_max_req_size=4, tp=RANKS,
        max_req_total_len=60, cpu_threads=1, graph_max_batch_size=3, graph_split_batch_size=1, graph_grow_step_size=2,
    )  # fmt: skip
    backend = ModeBackend(
        config,
        rank,
        RANKS,
        rendezvous=make_rendezvous(folder, rank, RANKS),
        open_device=lambda name, index: device,
    )
    backend.init_model()
    return noted, device, backend


@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_all_ranks_enqueue_the_same_in_every_graph_and_round(tmp_path, monkeypatch, architecture) -> None:
    path = make_checkpoint(tmp_path / "model", architecture, num_hidden_layers=2)
    zero, device, backend = operations_of(0, path, tmp_path, monkeypatch)
    rounds, submit = [], backend.submit
    monkeypatch.setattr(backend, "submit", lambda round_: (rounds.append(round_), submit(round_))[1])
    at_start = list(zero.operations)
    Serving(backend, LIMITS).run(WANTED)
    for rank in (1, RANKS - 1):
        noted, other, follower = operations_of(rank, path, tmp_path, monkeypatch)
        assert noted.operations == at_start
        assert other.captured == device.captured and len(device.captured) == 2
        for round_ in rounds:
            follower.submit(round_).result()
        assert noted.operations == zero.operations
    of_a_layer = [name for name, _, _ in device.captured[0]]
    assert of_a_layer == ["all_reduce"] * 5 + ["all_gather"]  # the embedding, two for each layer, the logits
    assert zero.operations[-1][0] == "broadcast"  # a round ends with its tokens
