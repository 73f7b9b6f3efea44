"""How long a request that arrives now would wait for its first token. Three things may keep it waiting:

memory     On the average over its stay a request needs its context and E[L^2] / 2 E[L] of an output of length L. What
           those ahead and it itself need, less what is free, must first be given back by others. How much that is a second
           is measured while requests wait: it is what those that entered needed.
rows       Those ahead and it itself need rows, less those that are free. How many become free in so many rounds follows
           from what the running requests have generated and from how long outputs are.
compute    The rounds in flight, and the prompts ahead, which are prefilled in what the decode rows leave of the rounds'
           tokens.

Before anything has been measured, of what is in use in steady traffic 1 / E[L] is given back a round. Rounds become seconds
by `StepTimeModel`. No clock here: `now` comes with the calls.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lightllm.protocol.messages import AddRequest
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.slo import SloController
from lightllm.router.admission.step_time import StepTimeModel
from lightllm.router.admission.waiting import WaitingList
from lightllm.router.planning.planned_round import PlannedRound
from lightllm.router.planning.running import Running
from lightllm.router.scheduler_config import SchedulerConfig

DEVIATIONS = 1.5
"""Standard deviations that are added to what is expected. A request behind n others enters when n + 1 have ended, each at a random
moment: the deviation of that time is 1 / sqrt(n + 1) of its mean."""
MEASURED_SECONDS = 15.0
"""Seconds after which what was given back counts 1 / e of what is given back now."""
LEAST_SECONDS = 2.0
"""Seconds of measuring before which the rate at which memory is given back counts as unknown."""
FULL = 0.9
"""Share of the memory that counts as usable while no request waits for it."""
TIMES = np.unique(np.rint(1.25 ** np.arange(48)).astype(np.int64))
"""Rounds from now, up to some 36,000, at which the number of rows that are free by then is worked out."""
SAMPLED = 8
"""Without a promise of times, and while no request waits, the time of one in so many rounds is learned from."""


@dataclasses.dataclass(eq=False)
class WaitPredictor:
    """Works on the books of its `Scheduler`; `_in_flight` is that object's own list."""

    _config: SchedulerConfig
    _lengths: OutputLengths
    _running: Running
    _waiting: WaitingList
    _times: StepTimeModel
    _slo: SloController
    _in_flight: list[PlannedRound]

    def __post_init__(self) -> None:
        options = self._config.options
        self._promised = bool(options.ttft_slo or options.tpot_slo)
        self._blocked_at: float | None = None
        """When a request was last found to wait for memory or a row; None if none was in the round planned last."""
        self._seconds = self._requests = self._context = 0.0
        """While requests waited: seconds, and requests and their context that entered; older ones count less."""
        self._put_back = 0, 0
        self._rounds = 0
        """That have returned."""
        self._rows_by_then = np.zeros(len(TIMES))
        self._rows_state = -1, 0, 0
        """Rounds that had returned, requests that had left, and those that ran."""

    @property
    def known(self) -> bool:
        """Whether any round has been timed."""
        return self._times.known

    # -- what has happened

    def round_done(self, planned: PlannedRound, seconds: float) -> None:
        """`seconds`: its compute time; 0 if unknown."""
        self._rounds += 1
        if self._promised or self._waiting or self._rounds % SAMPLED == 0 or self._rounds < SAMPLED:
            self._times.record(planned.tokens, int(planned.kv_len.sum()), seconds)

    def admitted(self, requests: int, context: int, blocked: bool, now: float) -> None:
        """So many requests with so many tokens of context have entered; `blocked`: others wait for memory or rows."""
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

    def nobody_waits(self) -> None:
        self._blocked_at = None

    # -- what follows

    def seconds(self, message: AddRequest, prompt: int, longest: int) -> float:
        """Until `message` would have `prompt` tokens of its prompt computed, if outputs have at most `longest` tokens."""
        ahead, context = self._waiting.ahead_of(message.params.priority)
        doubt = DEVIATIONS / math.sqrt(ahead + 1)
        memory = (1.0 + doubt) * self._memory_seconds(message, ahead, context, longest)
        rows = self._row_seconds(ahead + len(message.choices), context + len(message.prompt_ids), longest)
        return max(memory, rows) + self._prefill_seconds(prompt, ahead, context)

    def per_second(self, longest: int) -> float:
        """Requests that are served in a second while others wait; 0 where nothing is known of it."""
        if self._seconds >= LEAST_SECONDS and self._requests >= 1.0:
            return self._requests / self._seconds
        rows, seconds = self._full_server(longest)
        return rows / seconds if seconds > 0.0 else 0.0

    def _memory_seconds(self, message: AddRequest, ahead: int, context: int, longest: int) -> float:
        """Until there is memory for it, on the average."""
        running = self._running
        mean, area = self._lengths.moments(longest)
        growth = area / mean
        in_use, usable = running.kv.in_use, FULL * self._config.max_total_token_num
        excess = context + len(message.prompt_ids) + (ahead + len(message.choices)) * growth
        if self._blocked_at is None:  # some of the memory is still to be had
            count = len(running.requests)
            excess += max(in_use, in_use - self._generated() + count * growth) - usable
        if excess <= 0.0:
            return 0.0
        if self._seconds >= LEAST_SECONDS:
            given_back = self._context + self._requests * growth
            return excess * self._seconds / max(given_back, 1.0)
        if self._blocked_at is not None and not running.free_rows:
            return 0.0  # rows are short, and memory perhaps not
        return excess / usable * self._full_server(longest)[1]

    def _full_server(self, longest: int) -> tuple[float, float]:
        """(requests that run while others wait, seconds in which each of them is replaced by another one), worked out from round
        times: as many as have memory and rows."""
        running, config = self._running, self._config
        mean, area = self._lengths.moments(longest)
        usable = FULL * config.max_total_token_num
        count = max(1, len(running.requests) + self._waiting.count)
        prompt = (running.kv.in_use - self._generated() + self._waiting.context) / count
        rows = min(usable / max(1.0, prompt + area / mean), config.max_rows)
        tokens = rows * (1.0 + prompt / mean)
        rounds = mean * max(1.0, tokens / config.batch_max_tokens)
        held = min(usable, rows * (prompt + area / mean))
        return rows, rounds * self._times.seconds(min(tokens, config.batch_max_tokens), held)

    def _generated(self) -> int:
        """Tokens that the running requests have generated."""
        rows = self._running.prefilled_rows()
        return int((self._running.max_new_tokens[rows] - self._running.remaining[rows]).sum())

    def _row_seconds(self, requests: int, context: int, longest: int) -> float:
        """Until so many requests, which have so much context, have had rows; almost certainly."""
        running, config = self._running, self._config
        needed = requests - len(running.free_rows)
        if needed <= 0:
            return 0.0
        mean, _ = self._lengths.moments(longest)
        generations, more = divmod(needed - 1, config.max_rows)
        free = self._free_rows()
        if more < free[-1]:
            rounds = float(TIMES[free.searchsorted(more, side="right")])
        else:  # not those that run, but those that enter now make room for it
            rounds = mean
        rounds += generations * mean
        tokens = min(config.max_rows * (1.0 + context / (requests * mean)), config.batch_max_tokens)
        return rounds * self._times.seconds(tokens, running.kv.in_use)

    def _free_rows(self) -> np.ndarray:
        """float64 [TIMES]: rows of those that run which are almost certainly free so many rounds from now."""
        running = self._running
        state = self._rounds, running.left, len(running.requests)
        if state == self._rows_state:
            return self._rows_by_then
        self._rows_state = state
        rows = np.concatenate([running.prefilled_rows(), [r.row for r in running.prefilling]]).astype(
            np.int64
        )
        remaining, times = running.remaining[rows].astype(np.int64), TIMES[:, None]
        generated = running.max_new_tokens[rows] - remaining
        ended = 1.0 - self._lengths.survive(generated[None], np.broadcast_to(times, (len(TIMES), len(rows))))
        ended[:, running.exact[rows]] = 0.0
        ended[times >= remaining] = 1.0
        expected, variance = ended.sum(axis=1), (ended * (1.0 - ended)).sum(axis=1)
        self._rows_by_then = np.maximum.accumulate(expected - DEVIATIONS * np.sqrt(variance))
        return self._rows_by_then

    def _prefill_seconds(self, prompt: int, ahead: int, context: int) -> float:
        """What the rounds in flight take, and the prompts in memory, those that have room there, and this one."""
        running, config = self._running, self._config
        held = running.kv.in_use
        free = max(0, running.kv.available)
        if ahead:
            context = context * min(ahead, len(running.free_rows)) // ahead
        work = sum(running.work(r) for r in running.prefilling) + min(context, free) + prompt
        rows = len(running.requests)
        room = max(1, self._slo.round_tokens(rows, config.batch_max_tokens, held) - rows)
        rounds, rest = divmod(work, room)
        seconds = sum(self._times.seconds(planned.tokens, held) for planned in self._in_flight)
        if rounds:  # others will fill the last one too
            return seconds + (rounds + 1) * self._times.seconds(rows + room, held)
        return seconds + self._times.seconds(rows + rest, held)
