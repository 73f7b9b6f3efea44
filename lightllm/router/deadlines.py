"""`--ttft_slo` and `--tpot_slo`: who would come too late is refused at once, and rounds are no longer than promised.

When would a request that arrives now have its first token? Two things may keep it waiting:

memory     On the average over its stay a request holds its context and E[L^2] / 2 E[L] of an output of length L. What
           those ahead, the running ones and it itself hold beyond the memory u must be given back first. Of what is in use
           in steady traffic, 1 / E[L] is given back a round: an excess of x slots takes x / u * E[L] rounds.
compute    The prompts ahead are prefilled in what the decode rows leave of the rounds' tokens.

Rounds become seconds by `RoundTimes`. What this leaves out (cached prefixes, rows that have just begun together) shows in
how long those who enter did wait; predictions are scaled by the ratio of both. No clock here: `now` comes with the calls.
"""

from __future__ import annotations

import math

from lightllm.errors import ServerOverloaded
from lightllm.protocol.messages import AddRequest
from lightllm.protocol.rounds import Round
from lightllm.router.limits import SchedulerLimits
from lightllm.router.output_lengths import OutputLengths
from lightllm.router.request import Request
from lightllm.router.round_time import RoundTimes
from lightllm.router.running import Running
from lightllm.router.waiting import WaitingList

LEAST_CHUNK = 16
"""Prompt tokens that --tpot_slo leaves a round at least: prompts get on, however tight it is."""
HEADROOM = 0.9
"""Share of a promise that is planned for."""
TRUST = 0.05
"""Weight of the latest wait, and of the latest full memory, in their averages."""
LEAST_WAIT = 0.5
"""Seconds: shorter waits say nothing of the ratio."""


class Deadlines:
    """Works on the books of its `Scheduler`; costs nothing where neither option is given."""

    def __init__(
        self, limits: SchedulerLimits, lengths: OutputLengths, running: Running, waiting: WaitingList
    ) -> None:
        self._limits = limits
        self._lengths = lengths
        self._running = running
        self._waiting = waiting
        self._ttft, self._tpot = limits.ttft_slo, limits.tpot_slo
        self._times = RoundTimes()
        self._flying: dict[int, tuple[int, int]] = {}
        """Round in flight -> (tokens computed, tokens held)"""
        self._expected: dict[int, tuple[float, float]] = {}
        """Id of a waiting request -> (when it came, seconds that it should wait, unscaled)"""
        self._ratio = 1.0
        self._full = 0.9
        """Share of the memory in use while somebody waits for it."""

    # -- what has happened

    def round_planned(self, round_: Round) -> None:
        if self._ttft or self._tpot:
            self._flying[round_.seq] = len(round_.slots), int(round_.kv_len.sum())

    def round_done(self, seq: int, seconds: float) -> None:
        """`seconds`: its compute time; 0 if unknown."""
        if seq in self._flying:
            self._times.learn(*self._flying.pop(seq), seconds)

    def rounds_undone(self) -> None:
        """Those in flight were not computed."""
        self._flying.clear()

    def memory_is_full(self) -> None:
        """Somebody waits because no memory is left for him."""
        if self._ttft:
            share = self._running.kv.in_use / self._limits.max_total_token_num
            self._full += TRUST * (share - self._full)

    def entered(self, request: Request, now: float) -> None:
        came, expected = self._expected.pop(request.id, (0.0, 0.0))
        if expected >= LEAST_WAIT:
            ratio = min(max((now - came) / expected, 0.25), 4.0)
            self._ratio += TRUST * (ratio - self._ratio)

    def left(self, request: Request) -> None:
        self._expected.pop(request.id, None)

    # -- --ttft_slo: who is accepted

    def check(self, message: AddRequest, now: float) -> None:
        """Raises `ServerOverloaded` for a request whose first token would come too late. One that is restored goes on."""
        if not self._ttft or any(len(choice.output_ids) for choice in message.choices):
            return
        wait, work = self._wait(message), self._prefill_seconds(len(message.prompt_ids))
        predicted = wait * self._ratio + work
        if predicted > HEADROOM * self._ttft:
            raise ServerOverloaded(
                f"the first token would come in about {predicted:.1f} s, later than the {self._ttft:g} s that this server "
                "promises (ttft_slo)",
                retry_after=max(1, math.ceil(predicted - HEADROOM * self._ttft)),
            )
        for choice in message.choices:
            self._expected[choice.request_id] = now, wait

    def _wait(self, message: AddRequest) -> float:
        """Seconds until there is memory for it."""
        running = self._running
        mean, area = self._lengths.moments(message.params.max_new_tokens)
        growth = area / mean
        ahead, context = self._waiting.ahead_of(message.params.priority)
        count = len(running.requests)
        rows = running.prefilled_rows()
        generated = int((running.max_new_tokens[rows] - running.remaining[rows]).sum())
        in_use = running.kv.in_use
        usable = self._full * self._limits.max_total_token_num
        mine = len(message.prompt_ids) + len(message.choices) * growth
        held = max(in_use, in_use - generated + count * growth)
        excess = held + context + ahead * growth + mine - usable
        if excess <= 0.0:
            return 0.0
        # A full memory: as many rows as fit, each of which is replaced once in `mean` rounds.
        prompt = (in_use - generated + context) / max(1, count + ahead)
        full_rows = usable / max(1.0, prompt + growth)
        tokens = min(full_rows * (1.0 + prompt / mean), self._limits.batch_max_tokens)
        return excess / usable * mean * self._times.seconds(tokens, usable)

    def _prefill_seconds(self, prompt: int) -> float:
        """Seconds that the prompts in memory, those that have room there, and this one take."""
        running, limits = self._running, self._limits
        free = max(0, running.kv.available)
        _, context = self._waiting.ahead_of(None)
        work = sum(running.work(r) for r in running.prefilling) + min(context, free) + prompt
        rows = len(running.requests)
        room = max(1, self.round_tokens(rows, limits.batch_max_tokens, running.kv.in_use) - rows)
        rounds, rest = divmod(work, room)
        held = running.kv.in_use
        return rounds * self._times.seconds(rows + room, held) + self._times.seconds(rows + rest, held)

    # -- --tpot_slo: how long a round is, and how many share it

    def round_tokens(self, rows: int, budget: int, held: int) -> int:
        """The tokens of a round with `rows` decode rows that hold `held` tokens: `budget`, or fewer that keep the time."""
        if not self._tpot or not rows:
            return budget
        most = self._times.most_tokens(held, HEADROOM * self._tpot, budget)
        return min(budget, max(most, rows + LEAST_CHUNK))

    def capacity(self, rows: int) -> int:
        """The slots that `rows` requests may hold, so that a round of theirs with a small chunk keeps the time."""
        if not self._tpot:
            return self._limits.max_total_token_num
        held = self._times.most_held(rows + LEAST_CHUNK, HEADROOM * self._tpot)
        return int(min(held, self._limits.max_total_token_num))
