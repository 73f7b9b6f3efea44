"""How long outputs are expected to be when requests are admitted (`--schedule_policy`).

    conservative   as long as max_new_tokens says: never runs out of memory, fills it badly
    aggressive     one token more for everybody, so that what is held now counts: fills it, and pauses often
    past_future    as long as recent outputs were, given what has been generated already

`--router_token_ratio` selects LightLLM's own rule instead: short while there is room, then conservative.
"""

from __future__ import annotations

import numpy as np

from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.usage import ExpectedUsage, KnownUsage
from lightllm.router.limits import SchedulerLimits

CAUTION = 2.0
"""Standard deviations of the memory in use that past_future leaves free. On a full server of 70 long outputs, 1 instead of 2
makes five times as many requests pause, for no more throughput; 120 slots in 1000 are left free, or 90."""

Numbers = int | np.ndarray


class Conservative:
    """Everybody runs to max_new_tokens. Also what the others are made of: they differ in what they expect.

    Arrays have one entry a request: int64 [n], but for `exact`, bool [n]: its output will have `limit` tokens, neither EOS
    nor a stop string ends it. `Numbers` may also be those of one request.
    """

    may_err = False
    """Predictions may fail, so that requests pause: nothing need be certain."""

    def __init__(self, lengths: OutputLengths | None = None) -> None:
        self.lengths = OutputLengths() if lengths is None else lengths
        """What is known of recent outputs."""
        self.seq = 0
        """The round that forecasts are for."""

    def outputs_to_come(self, generated: Numbers, limit: Numbers, exact: Numbers) -> Numbers:
        """Further outputs of requests that have `generated` of at most `limit`; from 0 to limit - generated."""
        return limit - generated

    def usage(self) -> KnownUsage | ExpectedUsage:
        """How memory is foreseen; nobody is in it yet."""
        return KnownUsage()

    def begin_round(self, seq: int, used: float) -> None:
        """Forecasts from now on are for round `seq`. `used`: the share of the memory that requests need now."""
        self.seq = seq

    def observe(self, generated: np.ndarray) -> None:
        """What the running requests that may end early have generated so far, in this round."""
        self.lengths.update(generated, self.seq)

    def learn(self, length: int, ended: bool) -> None:
        """An output that might have ended early had `length` tokens; not `ended`: it was cut off, by its limit or by its
        client."""
        self.lengths.add(length, ended, self.seq)


class Aggressive(Conservative):
    """What is held now counts, and one token more for everybody."""

    may_err = True

    def outputs_to_come(self, generated: Numbers, limit: Numbers, exact: Numbers) -> Numbers:
        return np.minimum(limit - generated, 1)


class PastFuture(Conservative):
    """Outputs will be as long as recent ones were, given what has been generated already.

    The idea is that of "Past-Future Scheduler for LLM Serving under SLA Guarantees" (ASPLOS 2025), where in every round
    a length is drawn for each request from those of recent outputs, and a fixed share of the memory is left free for
    unlucky draws. Here every round takes the mean and the variance over all possible draws (`ExpectedUsage`): there is no
    luck, nothing to seed, and what is left free follows from how much is unknown.
    """

    may_err = True

    def __init__(self, caution: float = CAUTION, lengths: OutputLengths | None = None) -> None:
        super().__init__(lengths)
        self._caution = caution

    def usage(self) -> KnownUsage | ExpectedUsage:
        return ExpectedUsage(self.lengths, self._caution)


class TokenRatio(Conservative):
    """While less than `ratio` of the memory is in use, outputs are expected to have no more than `max_new_token_len`
    tokens, or a tenth more than they have; from there on, and where EOS is ignored, as many as they may."""

    may_err = True

    def __init__(self, ratio: float, max_new_token_len: int) -> None:
        super().__init__()
        self._ratio = ratio
        self._max_new_token_len = max_new_token_len
        self._busy = False

    def outputs_to_come(self, generated: Numbers, limit: Numbers, exact: Numbers) -> Numbers:
        if self._busy:
            return limit - generated
        expected = np.maximum(generated * 11 // 10, self._max_new_token_len)
        return np.where(exact, limit, np.minimum(limit, expected)) - generated

    def begin_round(self, seq: int, used: float) -> None:
        super().begin_round(seq, used)
        self._busy = used >= self._ratio


def make_policy(limits: SchedulerLimits) -> Conservative:
    """The one that the options name."""
    if limits.router_token_ratio > 0.0:
        return TokenRatio(limits.router_token_ratio, limits.router_max_new_token_len)
    policies = {"conservative": Conservative, "aggressive": Aggressive, "past_future": PastFuture}
    return policies[limits.schedule_policy]()
