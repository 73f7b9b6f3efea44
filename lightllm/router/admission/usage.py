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
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

from lightllm.router.admission.output_lengths import OutputLengths

TIMES = 2 ** np.arange(1, 12)
"""Rounds from now at which `ExpectedUsage` looks at those whose ends are not known."""
_COLUMN = TIMES[:, None].astype(np.float64)
FEW = 8
"""Requests that are worked out one by one in plain Python: for so few, arrays take longer."""


class Candidate(NamedTuple):
    """What a forecast knows of a request that prefills or wants to enter; the fields of `Entries`."""

    held: int
    to_come: int
    delay: int
    generated: int
    limit: int
    exact: bool

    @property
    def most(self) -> int:
        """Slots if it runs to its limit."""
        return self.held + self.limit - self.generated


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

    @classmethod
    def of(cls, candidates: list[Candidate]) -> Entries:
        held, to_come, delay, generated, limit, exact = np.array(candidates, dtype=np.int64).reshape(-1, 6).T
        return cls(held, to_come, delay, generated, limit, exact.astype(bool))

    def where(self, chosen: np.ndarray) -> Entries:
        """Those that `chosen`, bool [n], names."""
        return Entries(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    def to_limit(self) -> Entries:
        """As if all of them ran to their limits."""
        return dataclasses.replace(self, to_come=np.maximum(self.limit - self.generated, 1))


def peak(held: np.ndarray, to_come: np.ndarray, delay: np.ndarray | int = 0) -> int:
    """Most slots in use at any time; int arrays [n]. With delay 0 the formula above."""
    return _Ends(held, to_come, delay).peak


class KnownUsage:
    """Everybody takes `to_come` more slots."""

    def __init__(self) -> None:
        self._columns: list[tuple[np.ndarray, ...]] = [(np.zeros(0, dtype=np.int64),) * 3]
        """held, to_come, delay of those that were added together"""
        self._ends: _Ends | None = None

    def add(self, entries: Entries) -> None:
        self._columns.append((entries.held, entries.to_come, entries.delay))
        self._ends = None

    def join(self, candidates: list[Candidate]) -> None:
        self.add(Entries.of(candidates))

    @property
    def soonest(self) -> float:
        """Slots that are in use however much is added: nothing is known without looking at all ends."""
        return 0.0

    def at_most(self, slots: int) -> float:
        """What the peak is not above if others come on top that never have more than `slots`."""
        return inf

    @property
    def peak(self) -> int:
        return self.ends().peak

    def peak_with(self, candidates: list[Candidate]) -> int:
        """The peak if these come on top, without keeping them; n small."""
        if len(candidates) == 1:
            return self.ends().peak_with(candidates[0])
        entries = Entries.of(candidates)
        columns = [*self._columns, (entries.held, entries.to_come, entries.delay)]
        return _Ends(*_joined(columns)).peak

    def ends(self) -> _Ends:
        if self._ends is None:
            self._columns = [_joined(self._columns)]
            self._ends = _Ends(*self._columns[0])
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
        self._mean = [0.0] * len(TIMES)
        self._variance = [0.0] * len(TIMES)
        self._exact: KnownUsage | None = None
        self._tried: tuple[list[Candidate], list[float], list[float]] | None = None
        """The last ones that `peak_with` was asked for, mean and variance with them: those that are added next, if they fit."""
        self._soonest = 0.0
        self._peak: int | None = 0

    def add(self, entries: Entries) -> None:
        if entries.exact.any():
            self._exact = self._exact or KnownUsage()
            self._exact.add(entries.where(entries.exact).to_limit())
            entries = entries.where(~entries.exact)
        mean, variance = self._moments(entries)
        self._become(
            [a + b for a, b in zip(self._mean, mean, strict=True)],
            [a + b for a, b in zip(self._variance, variance, strict=True)],
        )

    def join(self, candidates: list[Candidate]) -> None:
        if len(candidates) > FEW or any(c.exact for c in candidates):
            self.add(Entries.of(candidates))
        elif self._tried is not None and self._tried[0] is candidates:
            self._become(*self._tried[1:])
        else:
            self._become(*self._with(candidates))

    def _become(self, mean: list[float], variance: list[float]) -> None:
        self._mean, self._variance = mean, variance
        self._soonest = mean[0] + self._caution * sqrt(variance[0])
        self._peak = None

    @property
    def soonest(self) -> float:
        """The usage that counts at the first of `TIMES`, where whoever comes still holds all that he held: so much the
        peak is at least, with that on top."""
        return self._soonest

    def at_most(self, slots: int) -> float:
        """What the peak is not above if others come on top that never have more than `slots`: the deviation of something
        between 0 and x is x / 2 at most, and that of a sum no more than the sum of those of its parts."""
        return inf if self._exact is not None else self.peak + 1 + (1.0 + self._caution / 2) * slots

    @property
    def peak(self) -> int:
        if self._peak is None:
            self._peak = self.peak_with([])
        return self._peak

    def peak_with(self, candidates: list[Candidate]) -> int:
        """The peak if these come on top, without keeping them; n small."""
        mean, variance = self._with(candidates)
        self._tried = candidates, mean, variance
        exact = [c for c in candidates if c.exact]
        if exact or self._exact is not None:
            return self._most_with_exact(mean, variance, Entries.of(exact).to_limit())
        caution = self._caution
        return int(max([m + caution * sqrt(v) for m, v in zip(mean, variance, strict=True)]))

    def _most_with_exact(self, mean: list[float], variance: list[float], more: Entries) -> int:
        known = (self._exact or KnownUsage()).ends()
        times = np.concatenate([TIMES, known.times, more.to_come + more.delay])
        usage = known.at(times) + _held_at(times, more.held, more.to_come, more.delay)
        spread = np.sqrt(np.interp(times, TIMES, variance))
        return int((usage + np.interp(times, TIMES, mean) + self._caution * spread).max())

    def _moments(self, entries: Entries) -> tuple[list[float], list[float]]:
        """At each of `TIMES`: mean and variance of what these hold, none of which is `exact`."""
        slots, expected = self._expected(entries)
        slots -= expected
        slots *= expected
        return np.add.reduce(expected, 1).tolist(), np.add.reduce(slots, 1).tolist()

    def _expected(self, entries: Entries) -> tuple[np.ndarray, np.ndarray]:
        """float64 [times, n] each: (slots if the request is still there, their expectation)"""
        times, remaining, delay = TIMES[:, None], entries.limit - entries.generated, entries.delay
        if len(delay) and (delay == delay[0]).all():  # as of all that decode
            delay = delay[:1]
        more = np.maximum(times - (delay + 1), 0)
        expected = self._lengths.survive(entries.generated, more)
        slots = _COLUMN + entries.held.astype(np.float64)
        far = int(TIMES.searchsorted(remaining.min(initial=TIMES[-1]), side="right"))
        if far < len(TIMES):  # where somebody meets his limit
            slots[far:] = np.minimum(times[far:], remaining) + entries.held
            expected[far:] *= more[far:] < remaining
        expected *= slots
        return slots, expected

    def _with(self, candidates: list[Candidate]) -> tuple[list[float], list[float]]:
        """At each of `TIMES`: mean and variance with those of these that are not `exact`."""
        mean, variance = self._mean.copy(), self._variance.copy()
        for held, _, delay, generated, limit, exact in candidates:
            if exact:
                continue
            for i, (alive, grown) in enumerate(self._outlook(delay, generated, limit)):
                slots = held + grown
                expected = alive * slots
                mean[i] += expected
                variance[i] += (slots - expected) * expected
        return mean, variance

    def _outlook(self, delay: int, generated: int, limit: int) -> list[tuple[float, int]]:
        """At each of `TIMES`: (the probability that such a request is still there, slots that it has taken since now)."""
        known = self._lengths.memo.get((delay, generated, limit))
        if known is None:
            remaining = limit - generated
            more = np.maximum(TIMES - (delay + 1), 0)
            alive = self._lengths.survive(np.array([generated]), more) * (more < remaining)
            known = list(zip(alive.tolist(), np.minimum(TIMES, remaining).tolist(), strict=True))
            self._lengths.memo[delay, generated, limit] = known
        return known


class _Ends:
    """At time t a request holds held + min(t, to_come), until t = to_come + delay; the sum grows between two ends, so the
    ends are where it has its maxima: sum over those alive = held + to_come - sum over to_come >= t of (to_come - t)."""

    def __init__(self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray | int) -> None:
        """int arrays [n]"""
        ends = to_come + delay
        order = np.argsort(ends)
        self.times = ends[order]
        """Where the maxima are, ascending."""
        self._from_end = _suffix_sums((held + to_come)[order])
        self._growing = np.sort(to_come)
        self._from_growing = _suffix_sums(self._growing)
        self._usage = self.at(self.times)
        self.peak = int(self._usage.max(initial=0))
        self._growth = np.maximum.accumulate(self._usage + self.times)
        """At each of `times`: the most until then of what is in use and one slot more for each round."""
        self._rest = np.maximum.accumulate(self._usage[::-1])[::-1]
        """The most from then on."""

    def peak_with(self, candidate: Candidate) -> int:
        """The peak if it comes on top. It grows first, then it stays as it is, then it has gone."""
        held, to_come, delay = candidate[:3]
        end = to_come + delay
        stays, gone = self.times.searchsorted((to_come, end), side="right").tolist()
        found = int(self.at(end)) + held + to_come
        if stays:
            found = max(found, int(self._growth[stays - 1]) + held)
        if stays < gone:
            found = max(found, int(self._usage[stays:gone].max()) + held + to_come)
        if gone < len(self._rest):
            found = max(found, int(self._rest[gone]))
        return found

    def at(self, times: np.ndarray | int) -> np.ndarray:
        """int64 [times]"""
        alive = self.times.searchsorted(times)
        still = self._growing.searchsorted(times)
        return self._from_end[alive] - self._from_growing[still] + times * (len(self._growing) - still)


def _joined(columns: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


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
