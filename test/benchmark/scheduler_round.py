"""CPU time of the scheduler per round (`next_round` and `apply`), by running requests: `python test/benchmark/scheduler_round.py`.

decode   nothing changes: everybody decodes
full     memory is always full and requests of ShareGPT's mean lengths wait, so that in each round some end and others enter
rush     the same where rows are short and not memory: half of it is prefix cache, of which each round evicts some, and
         waits are predicted for --ttft_slo, as in the rush hour of the simulator's synthetic:day
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import time
from collections import deque

import numpy as np

from lightllm.config import ServerConfig
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice
from lightllm.protocol.rounds import Round, RoundResult
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.sampling_params import SamplingParams

LOADS = ("decode", "full", "rush")
EOS, WORD = 2, 7
BUDGET, BUDGET_PER_ROW = 300.0, 3.0
"""Microseconds."""
MEAN_HELD = 440
"""Slots of a running request, on the average of the requests of `lengths`."""


class Load:
    """Requests without end, and a device that says EOS when a request has said enough; knows requests by their seed."""

    def __init__(
        self, scheduler: Scheduler, seed: int = 0, sigma: float = 0.9, max_new_tokens: int = 2048
    ) -> None:
        self._scheduler = scheduler
        self._random = np.random.default_rng(seed)
        self._sigma = sigma
        self._max_new_tokens = max_new_tokens
        self._ends: list[int] = []
        self._last = np.zeros(scheduler.config.max_rows, dtype=int)

    def _draw(self, mean: int, most: int) -> int:
        """A lognormal length."""
        length = self._random.lognormal(np.log(mean) - self._sigma**2 / 2, self._sigma)
        return int(np.clip(round(length), 1, most))

    def add(self) -> None:
        prompt, output = self._draw(217, 2048), self._draw(200, self._max_new_tokens)
        number = len(self._ends)
        self._ends.append(prompt + output - 1)
        params = SamplingParams(max_new_tokens=self._max_new_tokens, seed=number)
        ids = int32(100 + (number + np.arange(prompt)) % 30_000)
        self._scheduler.add(AddRequest(ids, params, [Choice(number, 0)]))

    def execute(self, round_: Round) -> RoundResult:
        for join in round_.joins:
            self._last[join.row] = self._ends[join.seed]
        sampled = round_.samples == 1
        ends = round_.kv_len[sampled] == self._last[round_.rows[sampled]]
        tokens = np.where(ends, EOS, WORD).astype(np.int32)
        return RoundResult(round_.seq, tokens, np.zeros(len(tokens), dtype=np.float32), seconds=0.05)


class Stopwatch:
    """CPU microseconds of this thread; profiles what it measures if it is given a profile."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self._profile = profile
        self.rounds: list[float] = []
        self._elapsed = 0.0

    def __enter__(self) -> None:
        if self._profile is not None:
            self._profile.enable()
        self._start = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        self._elapsed += (time.thread_time_ns() - self._start) / 1000
        if self._profile is not None:
            self._profile.disable()

    def clear(self) -> None:
        """Forgets what has been measured so far."""
        self.rounds.clear()
        if self._profile is not None:
            self._profile.clear()

    def next_round(self) -> None:
        self.rounds.append(self._elapsed)
        self._elapsed = 0.0


def measure_busy(
    rows: int, rounds: int, policy: str, rush: bool, watch: Stopwatch
) -> tuple[float, float, int]:
    """(mean running requests, share of the slots in use, pauses) over `rounds` rounds after the memory has filled."""
    capacity = rows * MEAN_HELD * (2 if rush else 1)
    options = ServerConfig(
        running_max_req_size=rows if rush else 4 * rows, max_waiting_requests=1000, schedule_policy=policy,
        ttft_slo=1e6 if rush else 0.0,
    )  # fmt: skip
    scheduler = Scheduler(SchedulerConfig(capacity, 4096, 5120, 4096, [EOS], options))
    load = Load(scheduler)
    flying: deque[Round] = deque()
    warm_up, running, used, pauses = 600, 0, 0, 0
    for number in range(warm_up + rounds):
        while scheduler.snapshot().waiting < 50:
            load.add()
        with watch:
            round_ = scheduler.next_round()
        if round_ is not None:
            flying.append(round_)
        if len(flying) == 2 or round_ is None:
            result = load.execute(flying.popleft())
            with watch:
                scheduler.apply(result)
        watch.next_round()
        if number < warm_up:
            watch.clear()
            pauses = scheduler.pauses
        else:
            state = scheduler.snapshot()
            running += state.running
            used += state.slots_used
    return running / rounds, used / rounds / capacity, scheduler.pauses - pauses


def measure_decode(rows: int, rounds: int, watch: Stopwatch) -> None:
    options = ServerConfig(running_max_req_size=rows, max_waiting_requests=rows)
    longest = rounds + 200
    scheduler = Scheduler(SchedulerConfig(rows * longest, longest, 4096, 2048, [EOS], options))
    params = SamplingParams(max_new_tokens=rounds + 100, seed=1)
    for i in range(rows):
        scheduler.add(AddRequest(int32(range(64)), params, [Choice(i, 0)]))
    round_ = scheduler.next_round()
    for number in range(rounds):
        count = int(round_.samples.sum())
        result = RoundResult(round_.seq, np.full(count, WORD, np.int32), np.zeros(count, np.float32))
        with watch:
            scheduler.apply(result)
            round_ = scheduler.next_round()
        watch.next_round()
        if number < 50:
            watch.clear()  # while requests still enter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument(
        "--repeat", type=int, default=3, help="rounds are the same each time: the least of each counts"
    )
    parser.add_argument("--load", choices=LOADS, nargs="+", default=LOADS)
    parser.add_argument("--policy", default="past_future")
    parser.add_argument("--profile", action="store_true", help="where the time goes; distorts the figures")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000)  # as the Router process does
    print(
        f"{'load':8}{'running':>9}{'memory':>8}{'pauses':>8}{'mean us':>9}{'median':>8}{'p99':>8}{'budget':>8}"
    )
    for load in options.load:
        for rows in options.rows:
            profile = cProfile.Profile() if options.profile else None
            running, memory, pauses = float(rows), 0.0, 0
            repeats = []
            for _ in range(1 if options.profile else options.repeat):
                watch = Stopwatch(profile)
                if load == "decode":
                    measure_decode(rows, options.rounds, watch)
                else:
                    rush = load == "rush"
                    running, memory, pauses = measure_busy(rows, options.rounds, options.policy, rush, watch)
                repeats.append(watch.rounds)
            took = np.min(repeats, axis=0)
            print(f"{load:8}{running:9.0f}{memory:8.2f}{pauses:8d}{took.mean():9.0f}{np.median(took):8.0f}"
                  f"{np.percentile(took, 99):8.0f}{BUDGET + BUDGET_PER_ROW * running:8.0f}")  # fmt: skip
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
