"""`--ttft_slo` and `--tpot_slo`: a request whose first token would be late is refused at once, and rounds are no longer than promised.

When would a request that arrives now have its first token? Two things may keep it waiting:

memory     On the average over its stay a request needs its context and E[L^2] / 2 E[L] of an output of length L. What
           those ahead and it itself need, less what is free, must first be given back by others. How much that is a second
           is measured while requests wait for memory: it is what those that entered needed.
compute    The prompts ahead are prefilled in what the decode rows leave of the rounds' tokens.

Before anything has been measured, of what is in use in steady traffic 1 / E[L] is given back a round. Rounds become seconds
by `StepTimeModel`. No clock here: `now` comes with the calls.
"""

from __future__ import annotations

import dataclasses
import math

from lightllm.errors import ServerOverloaded
from lightllm.protocol.messages import AddRequest
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.step_time import StepTimeModel
from lightllm.router.admission.waiting import WaitingList
from lightllm.router.planning.planned_round import PlannedRound
from lightllm.router.planning.running import Running
from lightllm.router.scheduler_config import SchedulerConfig

LEAST_CHUNK = 16
"""Prompt tokens that --tpot_slo leaves a round at least: prompts get on, however tight it is."""
HEADROOM = 0.9
"""Share of --tpot_slo that a round is planned for."""
MARGIN = 0.9
"""Share of --ttft_slo that a predicted wait may have: predictions err by about a tenth."""
DEVIATIONS = 1.5
"""Standard deviations of a wait for memory that are added to its mean. A request behind n others enters when n + 1 have ended, each
at a random moment: the deviation of that time is 1 / sqrt(n + 1) of its mean."""
MEASURED_SECONDS = 15.0
"""Seconds after which what was given back counts 1 / e of what is given back now."""
LEAST_SECONDS = 2.0
"""Seconds of measuring before which the rate at which memory is given back counts as unknown."""
FULL = 0.9
"""Share of the memory that counts as usable while no request waits for it."""


@dataclasses.dataclass(eq=False)
class SloController:
    """Works on the books of its `Scheduler`; costs nothing where neither option is given."""

    _config: SchedulerConfig
    _lengths: OutputLengths
    _running: Running
    _waiting: WaitingList

    def __post_init__(self) -> None:
        self._ttft, self._tpot = self._config.options.ttft_slo, self._config.options.tpot_slo
        self._times = StepTimeModel()
        self._blocked_at: float | None = None
        """When a request was last found to wait for memory; None if none was in the round planned last."""
        self._seconds = self._requests = self._context = 0.0
        """While requests waited: seconds, and requests and their context that entered; older ones count less."""
        self._put_back = 0, 0

    # -- what has happened

    def round_done(self, planned: PlannedRound, seconds: float) -> None:
        """`seconds`: its compute time; 0 if unknown."""
        if self._ttft or self._tpot:
            self._times.record(planned.tokens, int(planned.kv_len.sum()), seconds)

    def admitted(self, requests: int, context: int, blocked: bool, now: float) -> None:
        """So many requests with so many tokens of context have entered; `blocked`: others wait for memory."""
        if not self._ttft:
            return
        # A preempted request is re-admitted first, so that its slots are not available to others.
        put_back = self._waiting.put_back_requests, self._waiting.put_back_context
        requests -= put_back[0] - self._put_back[0]
        context -= put_back[1] - self._put_back[1]
        self._put_back = put_back
        if self._blocked_at is not None:
            elapsed = now - self._blocked_at
            past = math.exp(-elapsed / MEASURED_SECONDS)
            self._seconds = self._seconds * past + elapsed
            self._requests = self._requests * past + requests
            self._context = self._context * past + context
        self._blocked_at = now if blocked else None

    # -- --ttft_slo: which requests are accepted

    def check(self, message: AddRequest, now: float) -> None:
        """Raises `ServerOverloaded` for a request whose first token would come too late. One that is restored goes on."""
        if not self._ttft or message.restored:
            return
        ahead, _ = self._waiting.ahead_of(message.params.priority)
        doubt = DEVIATIONS / math.sqrt(ahead + 1)
        predicted = (1.0 + doubt) * self._memory_seconds(message) + self._prefill_seconds(
            len(message.prompt_ids)
        )
        if predicted > MARGIN * self._ttft:
            raise ServerOverloaded(
                f"the first token might come only in {predicted:.1f} s, which is too near to the {self._ttft:g} s that this "
                "server promises (ttft_slo), or later",
                retry_after=max(1, math.ceil(predicted - MARGIN * self._ttft)),
            )

    def _memory_seconds(self, message: AddRequest) -> float:
        """Seconds until there is memory for it."""
        running = self._running
        mean, area = self._lengths.moments(message.params.max_new_tokens)
        growth = area / mean
        ahead, context = self._waiting.ahead_of(message.params.priority)
        count = len(running.requests)
        rows = running.prefilled_rows()
        generated = int((running.max_new_tokens[rows] - running.remaining[rows]).sum())
        in_use, usable = running.kv.in_use, FULL * self._config.max_total_token_num
        excess = context + len(message.prompt_ids) + (ahead + len(message.choices)) * growth
        if self._blocked_at is None:  # some of the memory is still to be had
            excess += max(in_use, in_use - generated + count * growth) - usable
        if excess <= 0.0:
            return 0.0
        if self._seconds >= LEAST_SECONDS:
            given_back = self._context + self._requests * growth
            return excess * self._seconds / max(given_back, 1.0)
        # A full memory: as many rows as fit, each of which is replaced once in `mean` rounds.
        prompt = (in_use - generated + context) / max(1, count + ahead)
        full_rows = usable / max(1.0, prompt + growth)
        tokens = min(full_rows * (1.0 + prompt / mean), self._config.batch_max_tokens)
        return excess / usable * mean * self._times.seconds(tokens, usable)

    def _prefill_seconds(self, prompt: int) -> float:
        """Seconds that the prompts in memory, those that have room there, and this one take."""
        running, config = self._running, self._config
        free = max(0, running.kv.available)
        work = sum(running.work(r) for r in running.prefilling) + min(self._waiting.context, free) + prompt
        rows = len(running.requests)
        room = max(1, self.round_tokens(rows, config.batch_max_tokens, running.kv.in_use) - rows)
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
            return self._config.max_total_token_num
        held = self._times.most_held(rows + LEAST_CHUNK, HEADROOM * self._tpot)
        return int(min(held, self._config.max_total_token_num))
