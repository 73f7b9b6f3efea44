"""The memory that requests will hold, as a function of time: exactly where their ends are known, else on the average.

Time is counted in rounds. A request that holds `a` slots and takes one more in each of its next `b` rounds gives all
back when it ends. Sorted by `b` descending, the peak is max_i(b_i * i + sum_{j<=i} a_j). Two facts of this server make
requests stay longer than `b` rounds, without holding more, by their `delay`:

- rounds are planned one ahead, so what ends with round t can be reused from t + 2 on (one round for everybody);
- a prefill takes several rounds, and waits for those before it, while others decode. It may also sit out rounds in
  which others compute what both need.

Without the second a long decode would run into the memory of a prompt that should have been gone by then.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from math import sqrt

import numpy as np

from lightllm.router.output_lengths import OutputLengths

TIMES = 2 ** np.arange(1, 12)
"""Rounds from now at which `ExpectedUsage` looks at those whose ends are not known."""


@dataclasses.dataclass(frozen=True)
class Entries:
    """What a forecast knows of some requests; int64 [n] each."""

    held: np.ndarray
    """Slots, those of the whole prompt included."""
    to_come: np.ndarray
    """Slots that it will take, if its end is known."""
    delay: np.ndarray
    """Rounds that it stays longer than it takes slots."""
    generated: np.ndarray
    limit: np.ndarray
    """Most outputs, those `generated` included."""
    exact: np.ndarray
    """bool [n]: the output will have `limit` tokens."""

    def where(self, chosen: np.ndarray) -> Entries:
        """Those that `chosen`, bool [n], names."""
        return Entries(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @cached_property
    def total(self) -> int:
        """Slots that they hold."""
        return int(self.held.sum())

    @cached_property
    def most(self) -> int:
        """Slots if all of them ran to their limits."""
        return self.total + int((self.limit - self.generated).sum())


def peak(held: np.ndarray, to_come: np.ndarray, delay: np.ndarray | int = 0) -> int:
    """Most slots in use at any time; int arrays [n]. With delay 0 the formula above."""
    return _Ends(held, to_come, delay).peak


class KnownUsage:
    """Everybody takes `to_come` more slots."""

    def __init__(self) -> None:
        self._entries: list[Entries] = []
        self._ends: _Ends | None = None

    def add(self, entries: Entries) -> None:
        if self._ends is None:
            self._entries.append(entries)
        else:
            self._ends.add(entries.held, entries.to_come, entries.delay)

    @property
    def soonest(self) -> float:
        """Slots that are in use however much is added: nothing is known without looking at all ends."""
        return 0.0

    @property
    def peak(self) -> int:
        return self.ends().peak

    def peak_with(self, entries: Entries) -> int:
        """The peak if these come on top, without keeping them; n small."""
        return self.ends().peak_with(entries.held, entries.to_come, entries.delay)

    def ends(self) -> _Ends:
        if self._ends is None:
            columns = [(e.held, e.to_come, e.delay) for e in self._entries] or [(np.zeros(0, np.int64),) * 3]
            self._ends = _Ends(*(np.concatenate(column) for column in zip(*columns, strict=True)))
        return self._ends


class ExpectedUsage:
    """Everybody ends when `lengths` says, with its probabilities; those that are `exact`, at their limits.

    At time t a request holds held + t with probability p = P(longer than that, given what it has generated), else
    nothing. So the sum has the mean sum(p * (held + t)) and, as the lengths of outputs do not depend on each other, the
    variance sum(p * (1 - p) * (held + t)^2). The peak is the most of mean + caution * standard deviation.
    """

    def __init__(self, lengths: OutputLengths, caution: float) -> None:
        self._lengths = lengths
        self._caution = caution
        self._mean = np.zeros(len(TIMES))
        self._variance = np.zeros(len(TIMES))
        self._exact: KnownUsage | None = None
        self._tried: tuple[Entries, np.ndarray, np.ndarray] | None = None
        """The last ones that `peak_with` was asked for, their mean and variance: those that are added next, if they fit."""
        self._soonest = 0.0

    def add(self, entries: Entries) -> None:
        if self._tried is not None and self._tried[0] is entries:
            _, mean, variance = self._tried
        else:
            mean, variance = self._moments(entries)
        if entries.exact.any():
            self._exact = self._exact or KnownUsage()
            self._exact.add(_to_limit(entries.where(entries.exact)))
        self._mean += mean
        self._variance += variance
        self._soonest = float(self._mean[0]) + self._caution * sqrt(self._variance[0])

    @property
    def soonest(self) -> float:
        """The usage that counts at the first of `TIMES`, where whoever comes still holds all that he held: so much the
        peak is at least, with that on top."""
        return self._soonest

    @property
    def peak(self) -> int:
        return self._most(self._mean, self._variance, None)

    def peak_with(self, entries: Entries) -> int:
        """The peak if these come on top, without keeping them; n small."""
        exact = _to_limit(entries.where(entries.exact)) if entries.exact.any() else None
        mean, variance = self._moments(entries)
        self._tried = entries, mean, variance
        return self._most(self._mean + mean, self._variance + variance, exact)

    def _most(self, mean: np.ndarray, variance: np.ndarray, exact: Entries | None) -> int:
        if self._exact is None and exact is None:
            return int((mean + self._caution * np.sqrt(variance)).max())
        known = (self._exact or KnownUsage()).ends()
        more = (exact.held, exact.to_come, exact.delay) if exact else (np.zeros(0, np.int64),) * 3
        times = np.concatenate([TIMES, known.times, more[1] + more[2]])
        usage = known.at(times) + _held_at(times, *more)
        spread = np.sqrt(np.interp(times, TIMES, variance))
        return int((usage + np.interp(times, TIMES, mean) + self._caution * spread).max())

    def _moments(self, entries: Entries) -> tuple[np.ndarray, np.ndarray]:
        """float64 [times] each: mean and variance of what those hold of these that are not `exact`."""
        if entries.exact.any():
            entries = entries.where(~entries.exact)
        if len(entries.held) == 1:  # a candidate alone, as most are: a third of the work
            one = (entries.held[0], entries.delay[0], entries.generated[0], entries.limit[0])
            slots, expected = self._expected(TIMES, *one)
            return expected, (slots - expected) * expected
        slots, expected = self._expected(
            TIMES[:, None], entries.held, entries.delay, entries.generated, entries.limit
        )
        slots -= expected
        slots *= expected
        return expected.sum(axis=1), slots.sum(axis=1)

    def _expected(
        self, times: np.ndarray, held: np.ndarray, delay: np.ndarray, generated: np.ndarray, limit: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """float64 in the shape of all together: (slots at these times if the request is still there, their expectation)"""
        remaining = limit - generated
        more = np.maximum(times - (delay + 1), 0)
        expected = self._lengths.survive(generated, more)
        expected *= more < remaining
        slots = np.minimum(times, remaining) + np.asarray(held, dtype=np.float64)
        expected *= slots
        return slots, expected


def _to_limit(entries: Entries) -> Entries:
    return dataclasses.replace(entries, to_come=np.maximum(entries.limit - entries.generated, 1))


class _Ends:
    """At time t a request holds held + min(t, to_come), until t = to_come + delay; the sum grows between two ends, so the
    ends are where it has its maxima: sum over those alive = held + to_come - sum over to_come >= t of (to_come - t)."""

    def __init__(self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray | int) -> None:
        """int arrays [n]"""
        ends = to_come + delay
        order = np.argsort(ends)
        self._sorted = ends[order]
        self._from_end = _suffix_sums((held + to_come)[order])
        self._growing = np.sort(to_come)
        self._from_growing = _suffix_sums(self._growing)
        self._added: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.times = self._sorted
        """Where the maxima are."""
        self._usage = self._at(self.times)

    @property
    def peak(self) -> int:
        return int(self._usage.max(initial=0))

    def peak_with(self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray) -> int:
        return int(max(usage.max(initial=0) for usage in self._with(held, to_come, delay)))

    def add(self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray) -> None:
        self._usage = np.concatenate(self._with(held, to_come, delay))
        self.times = np.concatenate([self.times, to_come + delay])
        self._added.append((held, to_come, delay))

    def at(self, times: np.ndarray) -> np.ndarray:
        """int64 [times]"""
        usage = self._at(times)
        for added in self._added:
            usage += _held_at(times, *added)
        return usage

    def _with(
        self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(usage at all ends so far, usage at the ends of these) if these come on top."""
        times = to_come + delay
        own = self.at(times) + _held_at(times, held, to_come, delay)
        return self._usage + _held_at(self.times, held, to_come, delay), own

    def _at(self, times: np.ndarray) -> np.ndarray:
        """What those hold that have been there from the beginning."""
        alive = np.searchsorted(self._sorted, times, side="left")
        still = np.searchsorted(self._growing, times, side="left")
        return self._from_end[alive] - self._from_growing[still] + times * (len(self._growing) - still)


def _held_at(times: np.ndarray, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray) -> np.ndarray:
    """int64 [times]: what n requests hold then; O(n * times)."""
    total = np.zeros(len(times), dtype=np.int64)
    for a, b, d in zip(held.tolist(), to_come.tolist(), delay.tolist(), strict=True):
        total += np.where(times <= b + d, a + np.minimum(times, b), 0)
    return total


def _suffix_sums(values: np.ndarray) -> np.ndarray:
    """[n + 1]: sum of values[i:]."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    sums[:-1] = np.cumsum(values[::-1])[::-1]
    return sums
