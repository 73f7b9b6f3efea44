"""Two Model Backends as ranks of one model: what they do when one of them fails, and when they are told different things.

Rank 1 runs in a thread of its own and gets what the Router sends it; rank 0 is driven by a scheduler. gloo connects them.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.ranks import make_rendezvous
from support.recording_device import LateArrival, RecordingDevice
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

from lightllm.backend.device import CpuDevice, Device
from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.pending import PendingResult
from lightllm.backend.process import RoundRunner
from lightllm.config import ServerConfig
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import StartupError
from lightllm.protocol import codec
from lightllm.protocol.control import ModelReady
from lightllm.protocol.messages import ImageSpan
from lightllm.protocol.rounds import JoinRow, Resync, Round, RoundResult
from lightllm.sampling_params import SamplingParams

LIMITS = scheduler_config(
    max_total_token_num=400, max_req_total_len=120, running_max_req_size=4, batch_max_tokens=64,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip
PARAMS = [
    SamplingParams(temperature=0.0, max_new_tokens=20, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=3, top_p=0.9, max_new_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.0, frequency_penalty=1.0, max_new_tokens=22, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=4, regular_constraint="[a-zé ]{12,18}!", max_new_tokens=26),
    SamplingParams(temperature=0.0, guided_grammar='start: "a" <[99999999]>', max_new_tokens=26),
]
"""The last one names a token that is not there: it ends with an error."""
WANTED = [
    Wanted([(7 * i + n) % 380 for i in range(5 + 13 * n)], params, after_rounds=3 * n)
    for n, params in enumerate(PARAMS)
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    path = make_checkpoint(tmp_path_factory.mktemp("ranks") / "model", "llama", num_key_value_heads=1)
    return ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", cpu_threads=1, max_total_token_num=400,
        running_max_req_size=4, tp=2, check_rounds=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(config: ServerConfig) -> list[list[int]]:
    backend = ModeBackend(dataclasses.replace(config, tp=1), 0, 1)
    backend.init_model()
    return Serving(backend, LIMITS).run(WANTED)


class RankZero:
    """A `Backend` that passes on what it gets to rank 1, as bytes, before it computes."""

    def __init__(self, backend: ModeBackend, other: queue.Queue[bytes | None]) -> None:
        self.backend = backend
        self.other = other
        self.rewrite: Callable[[Round], Round] = lambda round_: round_
        """Applied to what rank 1 is sent."""

    def init_model(self) -> ModelReady:
        return self.backend.init_model()

    def submit(self, round: Round) -> PendingResult:
        self.other.put(codec.encode(self.rewrite(round)))
        return self.backend.submit(round)

    def fail_round(self, error: Exception, failed: RoundResult) -> RoundResult:
        return self.backend.fail_round(error, failed)

    def resync(self, seq: int) -> None:
        self.other.put(codec.encode(Resync(seq)))
        self.backend.resync(seq)


class Vectors(dict[int, torch.Tensor]):
    """An `EmbeddingSource`."""

    def read(self, item_id: int) -> torch.Tensor:
        return self[item_id]


class Ranks:
    def __init__(
        self,
        config: ServerConfig,
        folder: Path,
        operation_timeout: float,
        embeddings: Sequence[Vectors],
        devices: Sequence[Device],
    ) -> None:
        self.inbox: queue.Queue[bytes | None] = queue.Queue()
        self.told: list[str] = []
        """What the ranks do while they load."""
        self.backends = [
            ModeBackend(
                config,
                rank,
                2,
                self.told.append,
                rendezvous=make_rendezvous(folder, rank, 2, operation_timeout=operation_timeout),
                open_device=lambda name, index: devices[index],
                embeddings=embeddings[rank],
            )
            for rank in range(2)
        ]
        self.zero = RankZero(self.backends[0], self.inbox)
        self.error: Exception | None = None
        self.zero_error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.backends[1].init_model()
            runner = RoundRunner(self.backends[1])
            while (message := self.inbox.get()) is not None:
                runner.submit(codec.to_backend.decode(message))
                runner.take_ready()
        except Exception as error:  # the test looks at it
            self.error = error

    def serve(self, wanted: list[Wanted] = WANTED) -> tuple[list[list[int]], list[str]]:
        """The tokens of every request, and the reasons of failed rounds."""
        serving = Serving(self.zero, LIMITS)
        try:
            return serving.run(wanted), serving.failures
        except StartupError as error:
            self.zero_error = error
            raise


@contextmanager
def two_ranks(
    config: ServerConfig,
    folder: Path,
    operation_timeout: float = 10.0,
    embeddings: Sequence[Vectors] = (Vectors(), Vectors()),
    device: type[CpuDevice] = CpuDevice,
) -> Iterator[Ranks]:
    ranks = Ranks(config, folder, operation_timeout, embeddings, [device(), device()])
    ranks.thread.start()
    ranks.zero.init_model()
    try:
        yield ranks
    finally:
        ranks.inbox.put(None)
        ranks.thread.join(20)
        for backend in ranks.backends:
            backend.ranks.group.drop()
        assert not ranks.thread.is_alive()


def fail_once(backend: ModeBackend, call: int, error: Exception) -> None:
    """Makes call number `call` of the first layer's MLP raise."""
    layer = backend.model.layers[0]
    forward, calls = layer.mlp.forward, iter(range(10**6))

    def failing(x: torch.Tensor) -> torch.Tensor:
        if next(calls) == call:
            raise error
        return forward(x)

    layer.mlp.forward = failing


def test_two_ranks_give_the_tokens_of_one(config, expected, tmp_path) -> None:
    with two_ranks(config, tmp_path) as ranks:
        assert ranks.serve() == (expected, [])


def test_two_ranks_read_the_same_images_or_fail_the_round(config, tmp_path) -> None:
    vectors = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    ids = [7, 8, *range(2**24, 2**24 + 20), 9]
    seen, lost, alone = (Wanted(ids, PARAMS[0], images=[ImageSpan(2, 20, item)]) for item in (1, 2, 3))
    one = ModeBackend(dataclasses.replace(config, tp=1), 0, 1, embeddings=Vectors({1: vectors}))
    one.init_model()
    expected = Serving(one, LIMITS).run([seen])
    embeddings = Vectors({1: vectors, 3: vectors}), Vectors({1: vectors})
    with two_ranks(config, tmp_path, embeddings=embeddings) as ranks:
        assert ranks.serve([seen]) == (expected, [])
        assert ranks.serve([seen, lost]) == ([*expected, []], [])
        tokens, failures = ranks.serve([alone, WANTED[0]])
        assert not tokens[0] and len(tokens[1]) == 20
        assert failures and all("read embeddings of images that others could not" in why for why in failures)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_runs_out_of_memory_fails_the_round_and_nobody_else(
    config, expected, tmp_path, rank
) -> None:
    with two_ranks(config, tmp_path) as ranks:
        fail_once(ranks.backends[rank], 6, torch.OutOfMemoryError("injected"))
        assert ranks.serve() == (expected, [f"rank {rank}: OutOfMemoryError: injected"])
    assert ranks.error is None


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their groups do not heal."""
    monkeypatch.setattr(TpGroup, "heals", property(lambda group: False))


@pytest.mark.parametrize("rank", [0, 1])
def test_gpu_ranks_end_with_a_round_that_fails_and_leave_the_links_of_graphs_alone(
    config, tmp_path, on_gpus, monkeypatch, rank
) -> None:
    ended: list[int] = []
    drop = TpGroup.drop
    monkeypatch.setattr(
        TpGroup, "drop", lambda group, *reason: (ended.append(group.rank), drop(group, *reason))
    )
    few = dataclasses.replace(config, graph_max_batch_size=2)
    with two_ranks(few, tmp_path, operation_timeout=2.0, device=RecordingDevice) as ranks:
        ended.clear()
        fail_once(ranks.backends[rank], 6, torch.OutOfMemoryError("injected"))
        with pytest.raises(StartupError, match="failed in round .* are started anew"):
            ranks.serve()
        ranks.thread.join(20)
        assert isinstance(ranks.error, StartupError)
        assert ended == []
        errors = [str(error) for error in (ranks.error, ranks.zero_error) if "injected" in str(error)]
        assert len(errors) == 1 and f"rank {rank} failed in round" in errors[0]


def test_gpu_ranks_go_on_for_another_router_if_all_have_computed_the_same_rounds(
    config, expected, tmp_path, on_gpus
) -> None:
    few = dataclasses.replace(config, graph_max_batch_size=2)
    with two_ranks(few, tmp_path, operation_timeout=2.0, device=RecordingDevice) as ranks:
        links = [backend.ranks.group._links for backend in ranks.backends]
        assert ranks.serve() == (expected, [])
        ranks.zero.resync(1 << 40)
        assert ranks.serve() == (expected, [])
        assert [backend.ranks.group._links for backend in ranks.backends] == links
        assert {backend.ranks.group.generation for backend in ranks.backends} == {1 << 40}
        ranks.backends[0].ranks._rounds += 1  # a round that the other one was never sent
        with pytest.raises(StartupError, match="the ranks have computed [0-9]+, [0-9]+ rounds, and no round"):
            ranks.zero.resync(1 << 41)
        ranks.thread.join(20)
        assert isinstance(ranks.error, StartupError)


class BrokenArrival(LateArrival):
    def ready(self) -> bool:
        return True

    def arrays(self) -> list[Any]:
        raise RuntimeError("CUDA error: injected")


def test_a_rank_that_answers_nothing_notices_an_error_of_its_device_in_the_same_round(
    config, tmp_path, on_gpus
) -> None:
    with two_ranks(config, tmp_path, operation_timeout=2.0, device=RecordingDevice) as ranks:
        device: Any = ranks.backends[1].device
        download, calls = device.download, iter(range(10**6))
        device.download = lambda tensors: BrokenArrival([]) if next(calls) == 3 else download(tensors)
        with pytest.raises(StartupError):
            ranks.serve()
        ranks.thread.join(20)
    assert "rank 1 failed in round" in str(ranks.error) and "CUDA error: injected" in str(ranks.error)


@pytest.mark.parametrize("failing", [(0, 1), (0,), (1,)])
def test_a_request_that_a_rank_cannot_take_in_ends_alone(config, expected, tmp_path, failing) -> None:
    """On every rank alike, as an odd number does; and on one alone. Rank 0 samples: what the others know of sampling
    changes nothing."""

    def refusing(join: Callable[[JoinRow], None]) -> Callable[[JoinRow], None]:
        def call(row: JoinRow) -> None:
            if row.params == PARAMS[2]:
                raise OverflowError("injected")
            join(row)

        return call

    with two_ranks(config, tmp_path) as ranks:
        for rank in failing:
            rows = ranks.backends[rank].rows
            rows.join = refusing(rows.join)  # type: ignore[method-assign]
        tokens, failures = ranks.serve()
    assert failures == [] and ranks.error is None
    assert tokens == [said if n != 2 or 0 not in failing else [] for n, said in enumerate(expected)]


def test_different_rounds_are_noticed_before_they_are_computed(config, expected, tmp_path) -> None:
    with two_ranks(config, tmp_path) as ranks:
        ranks.zero.rewrite = lambda round_: (
            msgspec.structs.replace(round_, slots=round_.slots[::-1].copy()) if round_.seq == 4 else round_
        )
        tokens, failures = ranks.serve()
    assert tokens == expected
    assert len(failures) == 1 and "ranks [1] were given other rounds or hold other tokens" in failures[0]


def test_a_rank_that_fails_alone_after_a_round_ends_the_server(config, tmp_path) -> None:
    with two_ranks(config, tmp_path) as ranks:
        keep = ranks.backends[1].rows.keep_tokens
        calls = iter(range(10**6))

        def failing(*arguments: Any) -> None:
            if next(calls) == 3:
                raise RuntimeError("injected")
            keep(*arguments)

        ranks.backends[1].rows.keep_tokens = failing  # type: ignore[method-assign]
        with pytest.raises(
            StartupError, match="A tensor parallel rank failed in round .* on its own: rank 1: Runt"
        ):
            ranks.serve()


def test_a_rank_that_never_comes_back_is_named(config, tmp_path) -> None:
    with two_ranks(config, tmp_path, operation_timeout=1.0) as ranks:
        ranks.inbox.put(None)
        ranks.thread.join(20)
        with pytest.raises(StartupError, match="tensor parallel rank 1 did not answer within 1 s"):
            ranks.serve()
