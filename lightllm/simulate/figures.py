"""What a simulation has found: counts, distributions and a timeline, in memory that does not grow with the trace."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left, bisect_right

import numpy as np

BINS_PER_E = 100
"""Bins of a distribution are 1 % wide."""
LEAST = 1e-7


class Distribution:
    """Positive numbers, counted in logarithmic bins: quantiles are right to half a percent."""

    def __init__(self) -> None:
        self._bins = [0] * (BINS_PER_E * 40)
        self.count = 0
        self.sum = 0.0
        self.max = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.sum += value
        self.max = max(self.max, value)
        self._bins[int(math.log(max(value, LEAST) / LEAST) * BINS_PER_E)] += 1

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value below which `share` of all lie; 0 if there are none."""
        if not self.count:
            return 0.0
        bin_ = int(np.searchsorted(np.cumsum(self._bins), max(share * self.count, 1)))
        return min(LEAST * math.exp((bin_ + 0.5) / BINS_PER_E), self.max)


ROW_BINS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1 << 30)


class RoundCosts:
    """The scheduler's own CPU time per round, by the number of rows in it. Seconds in, microseconds out."""

    def __init__(self) -> None:
        self.all = Distribution()
        self.adding = Distribution()
        self._by_rows = [Distribution() for _ in ROW_BINS]
        self._rows = [0] * len(ROW_BINS)
        self._x = self._xx = 0
        """Sums of rows and of rows^2."""
        self._xy = 0.0
        """Sum of rows * seconds."""

    def add(self, rows: int, seconds: float) -> None:
        self.all.add(seconds)
        bin_ = bisect_right(ROW_BINS, rows) - 1
        self._by_rows[bin_].add(seconds)
        self._rows[bin_] += rows
        self._x += rows
        self._xx += rows * rows
        self._xy += rows * seconds

    def line(self) -> tuple[float, float]:
        """(a, b): least squares of seconds = a + b * rows."""
        n, x, y = self.all.count, self._x, self.all.sum
        spread = n * self._xx - x * x
        if spread <= 0:
            return self.all.mean, 0.0
        slope = (n * self._xy - x * y) / spread
        return (y - slope * x) / n, slope

    def table(self) -> list[dict[str, float]]:
        return [
            {
                "rows": round(rows / costs.count, 1),
                "rounds": costs.count,
                "mean_us": round(costs.mean * 1e6, 1),
                "p50_us": round(costs.quantile(0.5) * 1e6, 1),
                "p99_us": round(costs.quantile(0.99) * 1e6, 1),
            }
            for costs, rows in zip(self._by_rows, self._rows, strict=True)
            if costs.count
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """The state of the server at one time. Tokens and requests."""

    time: float
    slots_used: int
    slots_cached: int
    estimated_peak: int
    running: int
    waiting: int


class Timeline:
    """At most `most` moments, evenly spread over rounds: when there are more, every other one goes."""

    def __init__(self, most: int = 500) -> None:
        self.moments: list[Moment] = []
        self._most = most
        self._every = 1
        self._rounds = 0

    def due(self) -> bool:
        """To be asked once a round."""
        self._rounds += 1
        return self._rounds % self._every == 0

    def add(self, moment: Moment) -> None:
        self.moments.append(moment)
        if len(self.moments) >= self._most:
            self.moments = self.moments[1::2]
            self._every *= 2

    def mean_used(self, start: float, end: float) -> float:
        """Mean of `slots_used` over the time from `start` to `end`; each moment lasts until the next one."""
        times = np.array([m.time for m in self.moments] + [end])
        used = np.array([m.slots_used for m in self.moments], dtype=np.float64)
        lasts = np.diff(np.clip(times, start, end))
        total = float(lasts.sum())
        return float(used @ lasts / total) if total > 0 else 0.0

    def most_used(self) -> int:
        return max((m.slots_used for m in self.moments), default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the beginning, at one time."""

    time: float = 0.0
    finished: int = 0
    good: int = 0
    """Finished, and within the SLO."""
    output_tokens: int = 0
    busy: float = 0.0
    """Seconds that the device worked."""
    refused: int = 0
    arrived: int = 0


class Overtaking:
    """How many requests that came later got their first token earlier: what starvation is measured by."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        """Order numbers of those without a token, ascending."""
        self._accepted = 0
        self._started = 0
        self.most = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def accepted(self) -> int:
        """One more request; its order number."""
        self._accepted += 1
        self._waiting.append(self._accepted)
        return self._accepted

    def started(self, order: int) -> None:
        """It has its first token."""
        place = bisect_left(self._waiting, order)
        started_before_in_order = order - 1 - place
        self.most = max(self.most, self._started - started_before_in_order)
        self._started += 1
        del self._waiting[place]
