"""Microseconds that the scheduler takes per round of pure decode: `python test/benchmark/scheduler_round.py`."""

from __future__ import annotations

import time

import numpy as np

from lightllm.protocol import codec
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice
from lightllm.protocol.rounds import RoundResult
from lightllm.router.scheduler import Scheduler, SchedulerLimits
from lightllm.sampling_params import SamplingParams


def measure(rows: int, rounds: int = 2000) -> tuple[float, float]:
    """(scheduler, scheduler with messages) microseconds per round, medians."""
    limits = SchedulerLimits(
        max_total_token_num=rows * (rounds + 200), max_req_total_len=rounds + 200, running_max_req_size=rows,
        batch_max_tokens=4096, chunked_prefill_size=2048, max_waiting_requests=rows, eos_token_ids=[2],
    )  # fmt: skip
    scheduler = Scheduler(limits)
    params = SamplingParams(max_new_tokens=rounds + 100, seed=1)
    for i in range(rows):
        scheduler.add(AddRequest(int32(range(64)), params, [Choice(i, 0)], 0.0))
    round_ = scheduler.next_round()
    pure, whole = [], []
    for _ in range(rounds):
        count = int(round_.samples.sum())
        result = RoundResult(round_.seq, np.full(count, 7, np.int32), np.zeros(count, np.float32))
        data = codec.encode(result)
        start = time.perf_counter()
        result = codec.from_backend.decode(data)
        middle = time.perf_counter()
        tokens = scheduler.apply(result)
        round_ = scheduler.next_round()
        end = time.perf_counter()
        codec.encode(round_)
        codec.encode(tokens)
        pure.append(end - middle)
        whole.append(time.perf_counter() - start)
    return float(np.median(pure)) * 1e6, float(np.median(whole)) * 1e6


if __name__ == "__main__":
    for rows in (1, 32, 256):
        pure, whole = measure(rows)
        print(
            f"{rows:4d} rows: next_round + apply {pure:6.1f} us, with decoding and encoding {whole:6.1f} us"
        )
