"""The Efficient Router: a request is admitted if the predicted peak of KV memory stays within the capacity.

Time is counted in rounds. A request that holds `a` slots and takes one more in each of its next `b` rounds gives all
back when it ends. Sorted by `b` descending, the peak is max_i(b_i * i + sum_{j<=i} a_j). Two facts of this server make
requests stay longer than `b` rounds, without holding more; `peak` takes them as `delay`:

- rounds are planned one ahead, so what ends with round t can be reused from t + 2 on (one round for everybody);
- a prefill takes several rounds, and waits for those before it, while others decode. It may also sit out rounds in
  which others compute what both need.

Without the second a long decode would run into the memory of a prompt that should have been gone by then.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lightllm.router.output_lengths import WARM_START, WINDOW, OutputLengths, spread


def peak(held: np.ndarray, to_come: np.ndarray, delay: np.ndarray | int = 0) -> int:
    """Most slots in use at any time; int arrays [n]. With delay 0 the formula above.

    At time t a request holds held + min(t, to_come), until t = to_come + delay; the sum grows between two ends, so it
    is evaluated at the ends: sum over those alive = held + to_come - sum over to_come >= t of (to_come - t).
    """
    if not len(held):
        return 0
    ends = to_come + delay
    order = np.argsort(ends)
    ends = ends[order]
    from_end = _suffix_sums((held + to_come)[order])
    growing = np.sort(to_come)
    from_growing = _suffix_sums(growing)
    alive = np.searchsorted(ends, ends, side="left")
    still = np.searchsorted(growing, ends, side="left")
    overcount = from_growing[still] - ends * (len(held) - still)
    return int((from_end[alive] - overcount).max())


def _suffix_sums(values: np.ndarray) -> np.ndarray:
    """[n + 1]: sum of values[i:]."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    sums[:-1] = np.cumsum(values[::-1])[::-1]
    return sums


RESERVE = 0.03
"""Of the memory, with predictions from the past: they are right on the average, which half of the time is too little."""


class AdmissionPolicy(Protocol):
    """Where the prediction of output lengths comes from."""

    @property
    def reserve(self) -> float:
        """Share of the memory that a predicted peak leaves empty, for predictions that fall short."""

    def outputs_to_come(self, generated: np.ndarray, limit: np.ndarray, first: int) -> np.ndarray:
        """int64 [n]: further outputs of requests that have `generated` of at most `limit`; from 0 to limit - generated.
        They are numbers `first`, first + 1, ... of those that this forecast looks at."""

    def begin_round(self, seq: int) -> None:
        """Forecasts from now on are for round `seq`: the same question has the same answer until the next one."""

    def learn(self, length: int, ended: bool) -> None:
        """An output had `length` tokens; not `ended`: it was cut off, by its limit or by its client."""


class Conservative:
    """Everybody runs to max_new_tokens: never runs out of memory, fills it badly."""

    reserve: float = 0.0

    def outputs_to_come(self, generated: np.ndarray, limit: np.ndarray, first: int) -> np.ndarray:
        return limit - generated

    def begin_round(self, seq: int) -> None:
        pass

    def learn(self, length: int, ended: bool) -> None:
        pass


class Aggressive(Conservative):
    """What is held now counts, and one token more for everybody: fills the memory, and pauses often."""

    def outputs_to_come(self, generated: np.ndarray, limit: np.ndarray, first: int) -> np.ndarray:
        return np.minimum(limit - generated, 1)


class PastFuture:
    """Outputs will be as long as recent ones were: drawn anew for every round from the lengths of those that ended,
    given what has been generated already."""

    def __init__(self, seed: int = 0, window: int = WINDOW, warm_start: int = WARM_START) -> None:
        self.reserve = RESERVE
        self._lengths = OutputLengths(window, warm_start)
        self._seed = seed
        self._seq = 0

    def outputs_to_come(self, generated: np.ndarray, limit: np.ndarray, first: int) -> np.ndarray:
        return self._lengths.draw(generated, limit, spread(self._seed, self._seq, first, len(generated)))

    def begin_round(self, seq: int) -> None:
        self._seq = seq

    def learn(self, length: int, ended: bool) -> None:
        self._lengths.add(length, ended)


def make_policy(name: str) -> AdmissionPolicy:
    """A policy by the name that --schedule_policy gives it."""
    return {"conservative": Conservative, "aggressive": Aggressive, "past_future": PastFuture}[name]()


class Forecast:
    """The memory that the running requests will need, as seen in one round before anything is planned in it.

    Candidates are added in the order in which they would be prefilled.
    """

    def __init__(
        self,
        policy: AdmissionPolicy,
        capacity: int,
        token_budget: int,
        chunk: int,
        whole_prompts: bool,
        decode_rounds: int | None = None,
    ) -> None:
        """`decode_rounds`: those between two rounds of prefill alone; None: chunks and decode rows share rounds."""
        self._policy = policy
        self._decode_rounds = decode_rounds
        self._capacity = capacity
        self._token_budget = token_budget
        self._chunk = chunk
        self._whole_prompts = whole_prompts
        self._held = self._to_come = self._delay = np.zeros(0, dtype=np.int64)
        self._prefill_work = 0
        self._longest_work = 0
        self._prefills = 0
        self._running = 0
        self._rounds_one_by_one = 0
        self._someone_waits = False

    def add_decoding(self, held: np.ndarray, generated: np.ndarray, limit: np.ndarray) -> None:
        """Requests past their prefill; int arrays [n]."""
        to_come = self._policy.outputs_to_come(generated, limit, self._running)
        self._append(held, to_come, np.ones(len(held), dtype=np.int64))
        self._running += len(held)

    def add_prefilling(
        self, context: list[int], work: list[int], waits: list[bool], generated: list[int], limit: list[int]
    ) -> None:
        """Requests with `context` tokens of which `work` are still to be prefilled. `waits`: they may sit out rounds in
        which one of those ahead computes."""
        self._append(*self._prefilling(context, work, waits, generated, limit))
        self._rounds_one_by_one += int(self._steps(work).sum())
        self._someone_waits |= any(waits)
        self._prefill_work += sum(work)
        self._longest_work = max([self._longest_work, *work])
        self._prefills += len(work)
        self._running += len(work)

    def admit(
        self, context: list[int], work: list[int], waits: list[bool], generated: list[int], limit: list[int]
    ) -> bool:
        """Adds these candidates, all or none; False if they do not fit."""
        held, to_come, delay = self._prefilling(context, work, waits, generated, limit)
        if self._running + len(context) > self._token_budget:
            return False  # a round would have no room for a decode row of each
        if int(self._held.sum()) + int(held.sum()) > self._capacity:
            return False
        held_, to_come_, delay_ = self._held, self._to_come, self._delay
        if not self._fits(
            np.concatenate([held_, held]),
            np.concatenate([to_come_, to_come]),
            np.concatenate([delay_, delay]),
        ):
            return False
        self.add_prefilling(context, work, waits, generated, limit)
        return True

    def peak(self) -> int:
        return peak(self._held, self._to_come, self._delay)

    def _fits(self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray) -> bool:
        # Whoever comes while nobody runs has the whole memory, so that what intake accepted always enters at last.
        capacity = self._capacity - int(self._policy.reserve * self._capacity) * (self._running > 0)
        return int(held.sum() + to_come.sum()) <= capacity or peak(held, to_come, delay) <= capacity

    def _prefilling(
        self, context: list[int], work: list[int], waits: list[bool], generated: list[int], limit: list[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The whole context counts as held from the first round on. Nobody who comes later delays a prefill: those
        ahead do, with their chunks, and as decode rows afterwards."""
        # context - 1 slots and one a round for every output to come: the first output comes with the last prompt
        # token's slot, and the last one needs none.
        generated_, limit_ = np.asarray(generated, dtype=np.int64), np.asarray(limit, dtype=np.int64)
        to_come = np.maximum(self._policy.outputs_to_come(generated_, limit_, self._running), 1)
        held, rounds = np.asarray(context, dtype=np.int64) - 1, self._prefill_rounds(work, waits)
        if self._decode_rounds is None:
            return held, to_come, rounds
        # Memory grows in decode rounds alone, so these are the clock: the first output has come before the first of them.
        return held + 1, to_come - 1, rounds * self._decode_rounds + 1

    def _prefill_rounds(self, work: list[int], waits: list[bool]) -> np.ndarray:
        """int64 [n]: rounds with prefill until each of these has been prefilled, at most."""
        ahead = np.arange(len(work), dtype=np.int64)
        if self._whole_prompts:
            rounds = self._prefills + ahead + 1
        else:
            room = np.maximum(self._token_budget - self._decode_rows(ahead), 1)
            # Whoever has more work than a chunk may leave budget unused; only chunks are certain behind such a one.
            longest = np.maximum(np.maximum.accumulate(np.asarray(work, dtype=np.int64)), self._longest_work)
            room = np.where(longest > self._chunk, np.minimum(room, self._chunk), room)
            rounds = -(-(self._prefill_work + np.cumsum(work)) // room)
            if self._someone_waits or any(waits):
                # Whoever sits out leaves budget unused; only the first in the row is certain to have its chunk.
                uncertain = np.logical_or.accumulate(np.asarray(waits, dtype=bool)) | self._someone_waits
                one_by_one = self._rounds_one_by_one + np.cumsum(self._steps(work))
                rounds = np.where(uncertain, one_by_one, rounds)
        return rounds

    def _decode_rows(self, ahead: np.ndarray) -> np.ndarray | int:
        """Decode rows beside the prefill of those that have `ahead` candidates before them, at most."""
        return self._running + ahead if self._decode_rounds is None else 0

    def _steps(self, work: list[int]) -> np.ndarray:
        """int64 [n]: rounds that each needs while it is the first in the row."""
        ahead = np.arange(len(work), dtype=np.int64)
        room = np.clip(self._token_budget - self._decode_rows(ahead), 1, self._chunk)
        return -(-np.asarray(work, dtype=np.int64) // room)

    def _append(self, held: np.ndarray, to_come: np.ndarray, delay: np.ndarray) -> None:
        self._held = np.concatenate([self._held, held])
        self._to_come = np.concatenate([self._to_come, to_come])
        self._delay = np.concatenate([self._delay, delay])
