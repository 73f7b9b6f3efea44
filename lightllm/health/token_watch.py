"""The watchdog of --health_timeout: requests run, and nothing comes of it.

It sees what beats and the time of rounds do not: every process is busy, rounds come back, and still no client gets a token.
Tokens count where the Http Servers have received them, at the end of the way; those of prompts where rounds have computed
them, so that a long prefill is progress too.
"""

from __future__ import annotations

from lightllm.config import ServerConfig
from lightllm.ipc.stalls import round_seconds


def health_timeout(config: ServerConfig) -> float:
    """Seconds; 0: never. By default twice as long as a round may take: within a round no token can come."""
    return 2 * round_seconds(config) if config.health_timeout is None else config.health_timeout


class TokenWatch:
    def __init__(self, timeout: float) -> None:
        """timeout: seconds without a token that are too long; 0: none are."""
        self._timeout = timeout
        self._progress: tuple[float, ...] | None = None
        """The latest; None: nothing runs."""
        self._since = 0.0

    def check(self, running: int, progress: tuple[float, ...], now: float, resumed: float = 0.0) -> float:
        """Seconds without progress, if these are too many, else 0. running: requests; progress: counters, of which one grows
        with every token; now, resumed: `time.monotonic()`, at present and when the machine last went on."""
        if not running:
            self._progress = None
            return 0.0
        if progress != self._progress:
            self._progress = progress
            self._since = now
        seconds = now - max(self._since, resumed)
        return seconds if self._timeout and seconds > self._timeout else 0.0
