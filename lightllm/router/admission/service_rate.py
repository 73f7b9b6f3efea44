"""How fast requests are served, for those that are told to come again later."""

from __future__ import annotations

import collections
import math

SAMPLE_SECONDS = 1.0
SAMPLES = 15
"""The rate is that of the last seconds, as many as there are samples of one."""
MOST_SECONDS = 60
"""A client that is told to wait longer would rather go elsewhere."""


class ServiceRate:
    """Sampled whenever a request comes: what matters is the rate under load. Times are `time.monotonic()` seconds."""

    def __init__(self) -> None:
        self._samples: collections.deque[tuple[float, int]] = collections.deque(maxlen=SAMPLES + 1)

    def sample(self, now: float, left: int) -> None:
        """left: requests that have left their rows so far."""
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, left))

    def retry_after(self, waiting: int, now: float, left: int) -> int:
        """Seconds until so many requests, those that wait now, have been served; 1 while the rate is not known."""
        if not self._samples or now - self._samples[0][0] < SAMPLE_SECONDS:
            return 1
        begin, before = self._samples[0]
        served = max(left - before, 1)
        return max(1, min(MOST_SECONDS, math.ceil(waiting * (now - begin) / served)))
