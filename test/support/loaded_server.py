"""A scheduler under load, and a device that takes as long as its rounds are large, on a clock of its own."""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np

from lightllm.errors import ServerOverloaded
from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import RoundResult
from lightllm.router.scheduler import Scheduler
from support.router_device import add_request, make_limits

EOS, WORD = 0, 7


class LoadedServer:
    """A round takes 10 ms + 0.1 ms a token + `per_held` a token held; outputs have `shortest` to `longest` tokens."""

    def __init__(self, per_held=0.0, shortest=10, longest=89, **limits):
        values = {
            "max_total_token_num": 1000, "max_req_total_len": 600, "running_max_req_size": 200,
            "batch_max_tokens": 600, "chunked_prefill_size": 512, "max_waiting_requests": 10**6, "max_waiting_seconds": 0.0,
        }  # fmt: skip
        self.scheduler = Scheduler(make_limits(**(values | limits)))
        self.per_held = per_held
        self.lengths = shortest, longest
        self.now = 0.0
        self.arrival, self.first, self.refusals = {}, {}, []
        self.rounds = []
        self._ends = np.zeros(self.scheduler.config.max_rows, int)
        self._flying = deque()
        self._random = np.random.default_rng(0)

    def add(self, i, prompt=40, declared=400, **params):
        """How the request was refused, if it was."""
        ids = (i * 1000 + np.arange(prompt)) % 100_000 + 1
        try:
            self.scheduler.add(add_request(i, ids.tolist(), declared, **params), self.now)
        except ServerOverloaded as error:
            self.refusals.append(error)
            return error
        self.arrival[i] = self.now
        return None

    def turn(self):
        while (round_ := self.scheduler.next_round(self.now)) is not None:
            self._flying.append(round_)
        if not self._flying:
            self.now += 0.01
            return
        round_ = self._flying.popleft()
        seconds = 0.01 + 1e-4 * len(round_.slots) + self.per_held * int(round_.kv_len.sum())
        self.rounds.append((round_, seconds))
        self.now += seconds
        for join in round_.joins:
            shortest, longest = self.lengths
            self._ends[join.row] = join.prompt_len + 1 + int(self._random.integers(shortest, longest + 1))
        sampled = round_.samples == 1
        ended = round_.kv_len[sampled] >= self._ends[round_.rows[sampled]]
        tokens = self.scheduler.apply(
            RoundResult(
                round_.seq,
                int32(np.where(ended, EOS, WORD)),
                np.zeros(len(ended), np.float32),
                seconds=seconds,
            )
        ).tokens
        for i in tokens.request_ids if tokens else ():
            self.first.setdefault(i, self.now)

    def serve(self, rate, seconds, first=0, preferred=0, **params):
        """`rate` requests a second, evenly; until all that were accepted have ended. Every `preferred`-th has a better priority."""
        done, end = 0, self.now + seconds
        start = self.now
        while self.now < end or self.scheduler.has_work:
            while start + done / rate < min(self.now, end):
                better = preferred and (first + done) % preferred == 0
                self.add(first + done, priority=-1 if better else 0, **params)
                done += 1
            self.turn()

    def serve_patient(self, rate, seconds, first=0):
        """The same, where who is refused comes again when it is told to. For each request the number of times that it came."""
        coming = [(self.now + i / rate, first + i) for i in range(round(rate * seconds))]
        came = dict.fromkeys((i for _, i in coming), 0)
        while coming or self.scheduler.has_work:
            while coming and coming[0][0] <= self.now:
                _, i = heapq.heappop(coming)
                came[i] += 1
                if (refusal := self.add(i)) is not None:
                    heapq.heappush(coming, (self.now + refusal.retry_after, i))
            self.turn()
        return came

    def waits(self):
        """Seconds from the arrival of each accepted request to its first token."""
        return np.array([self.first[i] - self.arrival[i] for i in self.arrival])
