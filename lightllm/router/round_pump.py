"""Rounds from a `Scheduler` to what computes them, and results back: for the Router process and the offline `LLM` alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lightllm.protocol.messages import RoundTokens
from lightllm.protocol.rounds import Resync, Round, RoundResult
from lightllm.router.scheduler import MAX_IN_FLIGHT, Scheduler


@dataclasses.dataclass(eq=False)
class RoundPump:
    _scheduler: Scheduler
    _send: Callable[[Round | Resync], None]
    """Passes a message on to every rank."""
    _depth: int = MAX_IN_FLIGHT
    """Rounds that may be in flight."""

    def fill(self, now: float = 0.0) -> bool:
        """Sends rounds until `depth` are in flight or there is nothing to compute now; False if none was sent."""
        sent = False
        while self._scheduler.in_flight < self._depth:
            round_ = self._scheduler.next_round(now)
            if round_ is None:
                break
            self._send(round_)
            sent = True
        return sent

    def take(self, result: RoundResult) -> RoundTokens | None:
        """Applies a result, and returns all that is to be sent. A round that failed is undone by the scheduler and its work
        planned anew; the ranks are told where to go on."""
        applied = self._scheduler.apply(result)
        if applied.resync is not None:
            self._send(Resync(applied.resync))
        return applied.tokens
