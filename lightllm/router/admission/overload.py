"""Which requests are refused for load when they arrive, and when they are told to come back.

--max_waiting_requests   so many may wait; those of a better priority find twice the room
--max_waiting_seconds    none that would probably wait longer enters the list, unless few are ahead of it
--ttft_slo               nor one that would probably have its first token later than promised
"""

from __future__ import annotations

import dataclasses
import math

from lightllm.errors import ServerOverloaded
from lightllm.protocol.messages import AddRequest
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.wait import WaitPredictor
from lightllm.router.admission.waiting import WaitingList
from lightllm.router.planning.running import Running
from lightllm.router.scheduler_config import SchedulerConfig

MARGIN = 0.9
"""Share of --ttft_slo that a predicted wait may have: predictions err by about a tenth."""
ALWAYS_WAIT = 64
"""Requests that may be ahead of another one whatever --max_waiting_seconds says: a slow server with some clients is not an
overloaded one."""
USUAL_OUTPUT = 256
"""Tokens of an output, at most, that --max_waiting_seconds reckons with before enough outputs have ended."""
MOST_SECONDS = 60
"""A client that is told to wait longer would rather go elsewhere."""
SLACK = 1.2
"""How much slower than requests are served they are told to come back: predictions err, and each finds some room."""

RATE_SECONDS = 15.0
"""Seconds after which an accepted request counts 1 / e of one that is accepted now."""
LEAST_SEEN_SECONDS = 2.0
PRIORITIES = 64
"""Whose rates are known, of the most requests: clients choose the numbers."""
LEAST_LEFT = 0.02
"""Share of what is served that is left, at least, when refused requests are told to come back."""


class Returns:
    """When refused requests should come back: each at a time of its own, as far apart as they can be served. If all came back
    when there is room for one, nearly all would be refused again."""

    def __init__(self) -> None:
        self._told = 0.0
        """Requests that have been told to come back, less those that have been served since, whether they came or not."""
        self._at = 0.0

    def retry_after(self, requests: int, ahead: float, per_second: float, now: float) -> int:
        """Whole seconds. So many requests more are refused; there is room for one when `ahead` others have entered; so many
        are served in a second (0: not known)."""
        if per_second <= 0.0:
            return 1
        per_second /= SLACK
        self._told = max(0.0, self._told - (now - self._at) * per_second)
        self._at = now
        seconds = (self._told + max(0.0, ahead)) / per_second
        if seconds > MOST_SECONDS:  # none has a time of its own any more, but not all come at once
            seconds = MOST_SECONDS / 2 * (1.0 + seconds / MOST_SECONDS % 1.0)
        self._told += requests
        most = MOST_SECONDS * per_second
        if self._told > 2 * most:
            self._told = most + self._told % most
        return max(1, min(MOST_SECONDS, math.ceil(seconds)))


class AcceptedRates:
    """How many requests of each priority are accepted a second. Those that come later and are better pass the ones that wait, whose
    wait is longer for it: what n requests ahead take if a share of what is served is not for them."""

    def __init__(self) -> None:
        self._requests: dict[int, float] = {}
        """By priority; older ones count less."""
        self._at = 0.0
        self._begun: float | None = None

    def add(self, priority: int, requests: int, now: float) -> None:
        if self._begun is None:
            self._begun = self._at = now
        past = math.exp((self._at - now) / RATE_SECONDS)
        self._at = now
        if past < 1.0:
            counts = {other: count * past for other, count in self._requests.items()}
            most = sorted(counts, key=counts.__getitem__)[-PRIORITIES:]
            self._requests = {other: counts[other] for other in most}
        self._requests[priority] = self._requests.get(priority, 0.0) + requests

    def better_than(self, priority: int, now: float) -> float:
        """Requests a second."""
        if self._begun is None:
            return 0.0
        better = sum(count for other, count in self._requests.items() if other < priority)
        seen = RATE_SECONDS * (1.0 - math.exp((self._begun - now) / RATE_SECONDS))
        return better * math.exp((self._at - now) / RATE_SECONDS) / max(seen, LEAST_SEEN_SECONDS)


@dataclasses.dataclass(eq=False)
class OverloadControl:
    """Works on the books of its `Scheduler`."""

    _config: SchedulerConfig
    _lengths: OutputLengths
    _running: Running
    _waiting: WaitingList
    _wait: WaitPredictor

    def __post_init__(self) -> None:
        self._returns = Returns()
        self._accepted = AcceptedRates()

    def check(self, message: AddRequest, now: float) -> None:
        """Raises `ServerOverloaded`. What was accepted before goes on."""
        if message.restored or message.follows:
            return
        options = self._config.options
        ahead, _ = self._waiting.ahead_of(message.params.priority)
        self._check_list(message, ahead, now)
        if options.max_waiting_seconds and ahead >= ALWAYS_WAIT:
            self._check_wait(message, ahead, options.max_waiting_seconds, now)
        if options.ttft_slo:
            self._check_first_token(message, ahead, options.ttft_slo, now)
        self._accepted.add(message.params.priority, len(message.choices), now)

    def _check_list(self, message: AddRequest, ahead: int, now: float) -> None:
        """A group larger than the list may wait alone."""
        waiting, most, choices = (
            self._waiting.count,
            self._config.options.max_waiting_requests,
            len(message.choices),
        )
        too_many = max(ahead + choices - most if ahead else 0, waiting + choices - 2 * most if waiting else 0)
        if too_many > 0:
            raise ServerOverloaded(
                f"{waiting} requests are waiting already, at most {most} may (max_waiting_requests)",
                retry_after=self._retry_after(message, ahead, ahead - too_many, now),
            )

    def _check_wait(self, message: AddRequest, ahead: int, most: float, now: float) -> None:
        wait = self._wait.seconds(message, 0, self._longest(message)) / self._left(message, now)
        if wait > most:
            raise ServerOverloaded(
                f"{ahead} requests are ahead of this one, which might wait {wait:.1f} s for its turn; the server accepts those "
                f"that wait up to {most:g} s (max_waiting_seconds)",
                retry_after=self._retry_after(message, ahead, ahead * most / wait, now),
            )

    def _check_first_token(self, message: AddRequest, ahead: int, promised: float, now: float) -> None:
        if not self._wait.known:
            if self._in_next_round(message, ahead):
                return
            raise ServerOverloaded(
                f"how long requests wait is not known yet, and {ahead} are ahead of this one, whose first token may be later "
                f"than the {promised:g} s that this server promises (ttft_slo)",
                retry_after=1,
            )
        wait = self._wait.seconds(message, len(message.prompt_ids), message.params.max_new_tokens)
        wait /= self._left(message, now)
        if wait > MARGIN * promised:
            raise ServerOverloaded(
                f"the first token might come only in {wait:.1f} s, which is too near to the {promised:g} s that this server "
                "promises (ttft_slo), or later",
                retry_after=self._retry_after(message, ahead, ahead * MARGIN * promised / wait, now),
            )

    def _in_next_round(self, message: AddRequest, ahead: int) -> bool:
        """Whether its prompt, and those of all that wait, go into one round."""
        tokens = self._waiting.context + len(message.prompt_ids)
        rows = ahead + len(message.choices)
        return tokens <= self._config.batch_max_tokens and rows <= len(self._running.free_rows)

    def _retry_after(self, message: AddRequest, ahead: int, may_be_ahead: float, now: float) -> int:
        """`ahead` are ahead of it; when so few are, it is accepted."""
        per_second = self._wait.per_second(self._longest(message)) * self._left(message, now)
        return self._returns.retry_after(len(message.choices), ahead - may_be_ahead, per_second, now)

    def _left(self, message: AddRequest, now: float) -> float:
        """Share of what is served that is not for later requests of a better priority."""
        per_second = self._wait.per_second(self._longest(message))
        if per_second <= 0.0:
            return 1.0
        return max(LEAST_LEFT, 1.0 - self._accepted.better_than(message.params.priority, now) / per_second)

    def _longest(self, message: AddRequest) -> int:
        """Tokens of its output, at most, that may be expected."""
        longest = message.params.max_new_tokens
        return longest if self._lengths.learned else min(longest, USUAL_OUTPUT)
