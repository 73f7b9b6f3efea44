"""What the admission policies do with the same requests: `python test/benchmark/admission_policies.py`.

A queue that is full from the start; what is measured ends when it is empty. Outputs of lognormal lengths far below the max_new_tokens that clients
declare, and a device that only counts. Deterministic. Time is modelled: a round takes max(8.4 ms, 57 us * tokens computed)
+ 0.33 us * tokens held + 1 ms, about what Llama-7B takes on an A100.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import deque

import numpy as np

from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice
from lightllm.protocol.rounds import Round, RoundResult
from lightllm.router.scheduler import Scheduler, SchedulerLimits
from lightllm.sampling_params import SamplingParams

EOS, WORD = 2, 7
POLICIES = ("conservative", "aggressive", "past_future")


@dataclasses.dataclass(frozen=True)
class Workload:
    """Means in tokens; `sigma` of the lognormal lengths."""

    name: str
    prompt: int
    output: int
    sigma: float
    max_new_tokens: int

    def lengths(self, requests: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """int [requests] each: prompt and output lengths."""
        random = np.random.default_rng(seed)

        def draw(mean: int, sigma: float, most: int) -> np.ndarray:
            lengths = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, requests)
            return np.clip(np.rint(lengths), 1, most).astype(int)

        return draw(self.prompt, 1.0, 2048), draw(self.output, self.sigma, self.max_new_tokens)


WORKLOADS = (
    Workload("ShareGPT-like", prompt=217, output=200, sigma=0.9, max_new_tokens=2048),
    Workload("reasoning-like", prompt=200, output=1500, sigma=1.0, max_new_tokens=8192),
)


class CountingDevice:
    """Says EOS when a request has said as much as it wants to; knows requests by their seed."""

    def __init__(self, max_rows: int, prompts: np.ndarray, outputs: np.ndarray) -> None:
        self._last = np.zeros(max_rows, dtype=int)
        self._ends = prompts + outputs - 1
        self.seconds = 0.0

    def execute(self, round_: Round) -> RoundResult:
        for join in round_.joins:
            self._last[join.row] = self._ends[join.seed]
        sampled = round_.samples == 1
        ends = round_.kv_len[sampled] == self._last[round_.rows[sampled]]
        computed, held = len(round_.slots), int(round_.kv_len.sum())
        self.seconds += max(8.4e-3, 57e-6 * computed) + 0.33e-6 * held + 1e-3
        tokens = np.where(ends, EOS, WORD).astype(np.int32)
        return RoundResult(round_.seq, tokens, np.zeros(len(tokens), dtype=np.float32))


@dataclasses.dataclass(frozen=True)
class Figures:
    rounds: int
    batch: float
    """Mean sampled rows a round."""
    memory: float
    """Mean share of the slots that requests hold."""
    pauses: float
    """A request."""
    recomputed: float
    """Prefilled tokens above those of the prompts, as a share of these."""
    throughput: float
    """Output tokens a modelled second."""


def measure(policy: str, workload: Workload, requests: int, capacity: int, seed: int) -> Figures:
    limits = SchedulerLimits(
        max_total_token_num=capacity, max_req_total_len=2048 + workload.max_new_tokens, running_max_req_size=1000,
        batch_max_tokens=5120, chunked_prefill_size=4096, max_waiting_requests=requests, eos_token_ids=[EOS],
        schedule_policy=policy,
    )  # fmt: skip
    scheduler = Scheduler(limits)
    prompts, outputs = workload.lengths(requests, seed)
    device = CountingDevice(limits.max_rows, prompts, outputs)
    for i in range(requests):
        params = SamplingParams(max_new_tokens=workload.max_new_tokens, seed=i)
        ids = int32(100 + (i + np.arange(prompts[i])) % 30_000)
        scheduler.add(AddRequest(ids, params, [Choice(i, 0)], 0.0))
    flying: deque[Round] = deque()
    rounds = rows = held = prefilled = 0
    while scheduler.snapshot().waiting:
        while (round_ := scheduler.next_round()) is not None:
            flying.append(round_)
        round_ = flying.popleft()
        rounds += 1
        rows += int(round_.samples.sum())
        held += int(round_.kv_len.sum())
        prefilled += len(round_.token_ids)
        scheduler.apply(device.execute(round_))
    return Figures(
        rounds=rounds,
        batch=rows / rounds,
        memory=held / rounds / capacity,
        pauses=scheduler.pauses / requests,
        recomputed=prefilled / prompts.sum() - 1,
        throughput=rows / device.seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--capacity", type=int, default=120_000, help="KV slots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workload", choices=[w.name for w in WORKLOADS], action="append")
    options = parser.parse_args()
    for workload in WORKLOADS:
        if options.workload and workload.name not in options.workload:
            continue
        print(
            f"{workload.name}, {options.requests} requests, {options.capacity} slots, max_new_tokens {workload.max_new_tokens}"
        )
        print(f"{'':14}{'rounds':>8}{'batch':>8}{'memory':>8}{'pauses':>8}{'recomputed':>12}{'tokens/s':>10}")
        for policy in POLICIES:
            found = measure(policy, workload, options.requests, options.capacity, options.seed)
            print(f"{policy:14}{found.rounds:8d}{found.batch:8.1f}{found.memory:8.2f}{found.pauses:8.3f}"
                  f"{found.recomputed:12.3f}{found.throughput:10.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
