"""A whole model through `ModeBackend`, round by round, as the router would drive it: decode, prefill, gaps, a workload."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.gpu.clock import Limits, measure, synchronize
from benchmark.gpu.figures import Figure
from benchmark.gpu.sizes import DecodeCase, fitting, free_bytes
from support.recording_device import RecordingDevice

from lightllm.backend.device import Device, open_device
from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.pending import PendingResult
from lightllm.backend.process import RoundRunner
from lightllm.config import ServerConfig
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.control import ModelReady
from lightllm.protocol.messages import AddRequest, Choice
from lightllm.protocol.rounds import JoinRow, Resync, Round
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import resolve
from lightllm.sampling_params import SamplingParams

ROWS, CHUNK = 256, 8192
DECODE_CASES = [DecodeCase(1, 1024, 0.85), DecodeCase(64, 1024, 0.8), DecodeCase(256, 512, 0.75)]
GREEDY = SamplingParams(do_sample=False, ignore_eos=True, max_new_tokens=1 << 20, logprobs=-1)


def options(device: torch.device) -> dict[str, Any]:
    return {
        "load_way": "dummy",
        "device": device.type,
        "data_type": "bf16" if device.type == "cuda" else "fp32",
    }


@contextmanager
def loaded(shape: dict[str, Any], **more: Any) -> Iterator[tuple["Bench", ModelReady]]:
    """A backend with random weights in a shape, its KV memory filled with random values. Afterwards its memory is the
    device's again, although the caller still holds the bench."""
    folder = tempfile.mkdtemp()
    bench = None
    try:
        (Path(folder) / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 1 << 17}))
        backend = ModeBackend(ServerConfig(model_dir=folder, **more), 0, 1, open_device=_open)
        ready = backend.init_model(show_bar=False)
        with torch.inference_mode():
            for layer in backend.memory.kv:
                layer.data.normal_()
        bench = Bench(backend)
        yield bench, ready
    finally:
        shutil.rmtree(folder)
        if bench is not None:
            del bench.backend
        backend = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _open(name: str, index: int) -> Device:
    """A dry run on a CPU has graphs too."""
    return RecordingDevice() if name == "cpu" else open_device(name, index)


@dataclasses.dataclass
class Bench:
    backend: ModeBackend

    def __post_init__(self) -> None:
        model = self.backend.model
        self.device = self.backend.device.torch_device
        self.kv_bytes = sum(layer.bytes_per_slot for layer in self.backend.memory.kv)
        self.weight_bytes = model.weight_bytes - model.embed_tokens.nbytes
        self.parameters = self.weight_bytes / model.activation_dtype.itemsize
        self.vocab = model.config.vocab_size
        self._seq = 0

    def enter(self, rows: int, context: int) -> None:
        """Rows with `context` tokens each: all but the last are a cached prefix of random keys and values."""
        joins = [
            JoinRow(row, context, GREEDY, row, 0, [], int32(np.arange(row * context, row * context + context - 1)))
            for row in range(rows)
        ]  # fmt: skip
        ones = np.ones(rows, dtype=np.int32)
        tokens = np.random.default_rng(0).integers(5, self.vocab, rows)
        last = int32(np.arange(rows) * context + context - 1)
        self.submit(
            Round(0, 0, int32(range(rows)), ones, ones * context, np.ones(rows, np.uint8), int32(tokens), last, joins)
        ).result()  # fmt: skip

    def decode_round(self, rows: int, context: int) -> Round:
        """Every row computes one token at the end of its context; its slot is written again and again."""
        ones = np.ones(rows, dtype=np.int32)
        slots = int32(np.arange(rows) * context + context - 1)
        return Round(
            self._seq, rows, int32(range(rows)), ones, ones * context, np.ones(rows, np.uint8), EMPTY_INT32, slots
        )  # fmt: skip

    def submit(self, round_: Round) -> PendingResult:
        self._seq += 1
        return self.backend.submit(round_)

    def pipelined(self, rows: int, context: int, count: int) -> float:
        """Seconds of a decode round when the next one is always submitted before its result is read."""
        under_way: deque[PendingResult] = deque()
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(count):
            under_way.append(self.submit(self.decode_round(rows, context)))
            if len(under_way) == 2:
                under_way.popleft().result()
        while under_way:
            under_way.popleft().result()
        return (time.perf_counter() - started) / count

    def decode_limit(self, limits: Limits, rows: int, context: int) -> float:
        """Seconds of a decode round, if each of its phases takes what the hardware needs for it."""
        return limits.seconds(self.weight_bytes, 2 * self.parameters * rows, rows * context * self.kv_bytes)


def decode_and_prefill(
    name: str, shape: dict[str, Any], device: torch.device, limits: Limits, dry: bool
) -> Iterator[Figure]:
    chunk = CHUNK if not dry else 32
    cases = DECODE_CASES if not dry else [DecodeCase(1, 24, 0.85), DecodeCase(3, 24, 0.75)]
    cases = fitting(shape, cases, chunk, ROWS, free_bytes(device))
    slots = max(max(rows * context for rows, context, _ in cases), chunk) + 64
    with loaded(
        shape, max_total_token_num=slots, running_max_req_size=8 if dry else ROWS, max_req_total_len=chunk + 64,
        chunked_prefill_size=chunk, batch_max_tokens=chunk, **options(device),
    ) as (bench, ready):  # fmt: skip
        yield Figure(
            f"{name}: load, memory, warm-up, graphs", sum(ready.seconds.values()), "s", details=ready.seconds
        )
        for rows, context, aim in cases:
            bench.enter(rows, context)
            bench.pipelined(rows, context, 5)
            seconds = bench.pipelined(rows, context, 5 if dry else 100)
            limit = bench.decode_limit(limits, rows, context)
            yield Figure(
                f"{name}: decode, batch {rows}, context {context}", seconds * 1e3, "ms", limit * 1e3,
                "weights at copy bandwidth or products, then KV at copy bandwidth", aim, lower_is_better=True,
                details={"tokens_per_s": rows / seconds},
            )  # fmt: skip
            if rows == (3 if dry else 64):
                yield _gap(name, bench, rows, context, seconds)
        yield _prefill(name, bench, chunk, device, limits)


def _gap(name: str, bench: Bench, rows: int, context: int, seconds: float) -> Figure:
    """How much longer a round takes than the device works on it: the same graph and sampling, enqueued without host."""
    graphs = bench.backend._graphs
    assert graphs is not None
    size = graphs.size_for(rows)
    assert size is not None
    state, sampler = bench.backend.rows, bench.backend.sampler
    plan = sampler.plan(np.arange(rows))
    positions = np.zeros(rows, dtype=np.int64)
    on_device = torch.zeros(rows, dtype=torch.int64, device=bench.device)

    def busy() -> None:
        logits = graphs.run(size)[:rows]
        sampled = sampler.sample(logits, plan, positions, on_device)
        state.keep_tokens(plan.rows_on_device, plan.counted, sampled.token_ids)

    with torch.inference_mode():
        bench.backend.device.activate()
        device_seconds = measure(busy, bench.device, inner=20)
    gap = max(0.0, 100 * (1 - device_seconds / seconds))
    return Figure(f"{name}: gap between decode rounds, batch {rows}", gap, "%", aim=5.0, lower_is_better=True,
                  details={"round_ms": seconds * 1e3, "device_ms": device_seconds * 1e3})  # fmt: skip


def _prefill(name: str, bench: Bench, length: int, device: torch.device, limits: Limits) -> Figure:
    config = bench.backend.model.config
    ids = int32(np.random.default_rng(1).integers(5, bench.vocab, length))

    def once() -> None:
        join = JoinRow(0, length, GREEDY, 0, 0, [])
        bench.submit(
            Round(0, 0, int32([0]), int32([length]), int32([length]), np.ones(1, np.uint8), ids, int32(range(length)),
                  [join])
        ).result()  # fmt: skip

    seconds = measure(once, device, seconds=2.0)
    head = bench.vocab * config.hidden_size  # computed for the last token alone
    attention = 2.0 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1)
    operations = 2.0 * (bench.parameters - head) * length + attention
    return Figure(
        f"{name}: prefill of {length} tokens", operations / seconds / 1e12, "TFLOP/s", limits.flops / 1e12,
        "matrix product", 0.7, details={"ms": seconds * 1e3, "tokens_per_s": length / seconds},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Served:
    tokens_per_s: float
    limit: float
    """Tokens per second if every round took what its bytes and operations need."""
    details: dict[str, float]


def serve(bench: Bench, ready: ModelReady, wanted: list[tuple[np.ndarray, int]], limits: Limits) -> Served:
    """Answers (prompt, output tokens) requests, all there at once, with a round always in flight behind the present one."""
    config = bench.backend._config
    scheduler = Scheduler(resolve(config, ready.max_total_token_num, ready.device, 1 << 17, []))
    runner = RoundRunner(bench.backend)
    for i, (prompt, output) in enumerate(wanted):
        params = SamplingParams(do_sample=False, ignore_eos=True, max_new_tokens=output, logprobs=-1)
        scheduler.add(AddRequest(int32(prompt), params, [Choice(i, 0)]))
    least, rounds, tokens, computed, in_flight = 0.0, 0, 0, 0, 0
    synchronize(bench.device)
    started = time.perf_counter()
    while scheduler.has_work:
        while in_flight < 2 and (round_ := scheduler.next_round()) is not None:
            runner.submit(round_)
            in_flight += 1
            rounds += 1
            new, context = int(round_.q_len.sum()), int(round_.kv_len.sum())
            computed += new
            least += limits.seconds(bench.weight_bytes, 2 * bench.parameters * new, context * bench.kv_bytes)
        out, resync = scheduler.apply(runner.take())
        in_flight -= 1
        tokens += len(out.token_ids) if out is not None else 0
        if resync is not None:
            runner.submit(Resync(resync))
            in_flight = 0
    seconds = time.perf_counter() - started
    details = {"seconds": seconds, "rounds": rounds, "output_tokens": tokens, "computed_tokens": computed}
    return Served(tokens / seconds, tokens / least, details)


def offline_workload(
    name: str, shape: dict[str, Any], device: torch.device, limits: Limits, dry: bool
) -> list[Figure]:
    """mini-sglang's published workload: 256 requests, input and output lengths uniform in 100-1024, seed 0, no EOS."""
    count, low, high = (6, 4, 12) if dry else (256, 100, 1024)
    dice = np.random.default_rng(0)
    inputs, outputs = dice.integers(low, high + 1, count), dice.integers(low, high + 1, count)
    more = {"max_total_token_num": 400} if dry else {}
    with loaded(shape, max_req_total_len=2 * high + 64, **more, **options(device)) as (bench, ready):
        wanted = [(dice.integers(5, bench.vocab, int(n)), int(output)) for n, output in zip(inputs, outputs)]
        served = serve(bench, ready, wanted, limits)
    return [
        Figure(f"{name}: {count} requests of {low}-{high} + {low}-{high} tokens, output", served.tokens_per_s,
               "tokens/s", served.limit, "every round's bytes and operations", details=served.details)
    ]  # fmt: skip
