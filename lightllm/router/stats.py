"""The statistics line of the log: what an operator wants to read every few seconds."""

from __future__ import annotations

import logging

from lightllm.ipc.snapshot import Snapshot

logger = logging.getLogger("router")


class StatsLine:
    """Logs load and rates once an interval, and is silent while nothing happens."""

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._last = now
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._was_quiet = True

    def due(self, now: float) -> bool:
        return now - self._last >= self._interval

    def log(self, state: Snapshot, now: float) -> None:
        """`now`: a monotonic clock, seconds."""
        elapsed = max(now - self._last, 1e-9)
        tokens_in = state.prompt_tokens - self._prompt_tokens
        tokens_out = state.output_tokens - self._output_tokens
        quiet = not (tokens_in or tokens_out or state.running or state.waiting)
        if not (quiet and self._was_quiet):
            logger.info(
                "running %d, waiting %d, paused %d | slots used %d, cached %d of %d, peak %d | "
                "tokens/s in %.1f, out %.1f",
                state.running, state.waiting, state.paused, state.slots_used, state.slots_cached,
                state.slots_total, state.estimated_peak, tokens_in / elapsed, tokens_out / elapsed,
            )  # fmt: skip
        self._was_quiet = quiet
        self._last = now
        self._prompt_tokens = state.prompt_tokens
        self._output_tokens = state.output_tokens
