"""The memory that requests will hold, as a function of time: exactly where their ends are known, else on the average.

Time is counted in rounds. A request that holds `a` slots and takes one more in each of its next `b` rounds gives all
back when it ends. Sorted by `b` descending, the peak is max_i(b_i * i + sum_{j<=i} a_j). Two facts of this server make
requests stay longer than `b` rounds, without holding more, by their `delay`:

- rounds are planned one ahead, so what ends with round t can be reused from t + 2 on (one round for every request);
- a prefill takes several rounds, and waits for those before it, while others decode. It may also sit out rounds in
  which others compute what both need.

Without the second a long decode would run into the memory of a prompt that should have been gone by then.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm.router.admission.demand import Demand
from lightllm.router.admission.output_lengths import OutputLengths

TIMES = 2 ** np.arange(1, 12)
"""Rounds from now at which `ExpectedUsage` looks at requests whose ends are not known."""


@dataclasses.dataclass(frozen=True)
class KnownUsage:
    """What requests will hold, each of which takes `to_come` more slots; int64 [n] each. A value, which adding does not
    change."""

    held: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    to_come: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    delay: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def plus(self, demand: Demand, to_come: np.ndarray, delay: np.ndarray) -> KnownUsage:
        """With these on top. int64 [n]: `to_come` slots that each takes beside `held`, as far as that is foreseen; `delay`."""
        return KnownUsage(
            np.concatenate([self.held, demand.held]),
            np.concatenate([self.to_come, to_come]),
            np.concatenate([self.delay, delay]),
        )

    @property
    def peak(self) -> int:
        """The most slots in use at any time."""
        return int(self.at(self.ends).max(initial=0))

    @property
    def ends(self) -> np.ndarray:
        """The sum grows between two ends, so these are where it has its maxima."""
        return self.to_come + self.delay

    def at(self, times: np.ndarray) -> np.ndarray:
        """int64 [times]. A request holds held + min(t, to_come) until its end: the sum over those that have not ended is
        that of held + to_come, less that of to_come - t over those that still grow."""
        order = np.argsort(self.ends)
        growing = np.sort(self.to_come)
        from_end, from_growing = _suffix_sums((self.held + self.to_come)[order]), _suffix_sums(growing)
        alive, still = self.ends[order].searchsorted(times), growing.searchsorted(times)
        return from_end[alive] - from_growing[still] + times * (len(growing) - still)


@dataclasses.dataclass(frozen=True)
class ExpectedUsage:
    """Every request ends when `lengths` says, with its probabilities; those that are `exact`, at their limits.

    At time t a request holds held + t with probability p = P(longer than that, given what it has generated), else
    nothing. So the sum has the mean sum(p * (held + t)) and, as the lengths of outputs do not depend on each other, the
    variance sum(p * (1 - p) * (held + t)^2). The peak is the most of mean + caution * standard deviation.
    """

    lengths: OutputLengths
    caution: float
    mean: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TIMES)))
    """float64 [TIMES], as `variance`: of the requests that are not exact."""
    variance: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TIMES)))
    exact: KnownUsage = dataclasses.field(default_factory=KnownUsage)

    def plus(self, demand: Demand, to_come: np.ndarray, delay: np.ndarray) -> ExpectedUsage:
        known, exact = self.exact, demand.exact
        if exact.any():
            some = Demand(*(column[exact] for column in demand))
            known = known.plus(some, some.to_limit, delay[exact])
            demand, delay = Demand(*(column[~exact] for column in demand)), delay[~exact]
        slots, expected = self._expected(demand, delay)
        mean = self.mean + expected.sum(axis=1)
        slots -= expected
        slots *= expected
        return ExpectedUsage(self.lengths, self.caution, mean, self.variance + slots.sum(axis=1), known)

    @property
    def peak(self) -> int:
        spread = self.caution * np.sqrt(self.variance)
        if not len(self.exact.held):
            return int((self.mean + spread).max())
        times = np.concatenate([TIMES, self.exact.ends])
        unknown = np.interp(times, TIMES, self.mean) + self.caution * np.sqrt(
            np.interp(times, TIMES, self.variance)
        )
        return int((self.exact.at(times) + unknown).max())

    def _expected(self, demand: Demand, delay: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 [times, n] each: (slots if the request is still there, their expectation)"""
        times, remaining = TIMES[:, None], demand.limit - demand.generated
        if len(delay) and (delay == delay[0]).all():  # as of all that decode
            delay = delay[:1]
        more = np.maximum(times - (delay + 1), 0)
        expected = self.lengths.survive(demand.generated, more)
        slots = times + demand.held.astype(np.float64)
        far = int(TIMES.searchsorted(remaining.min(initial=TIMES[-1]), side="right"))
        if far < len(TIMES):  # where a request meets its limit
            slots[far:] = np.minimum(times[far:], remaining) + demand.held
            expected[far:] *= more[far:] < remaining
        expected *= slots
        return slots, expected


def peak(held: np.ndarray, to_come: np.ndarray, delay: np.ndarray | int = 0) -> int:
    """Most slots in use at any time; int64 [n] each. With delay 0 the formula above."""
    return KnownUsage(held, to_come, np.zeros_like(held) + delay).peak


def _suffix_sums(values: np.ndarray) -> np.ndarray:
    """[n + 1]: sum of values[i:]."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    sums[:-1] = np.cumsum(values[::-1])[::-1]
    return sums
