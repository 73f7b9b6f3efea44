"""The rounds that a device has been given: alike ones as one stretch, whose length in time has a formula."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Generic, TypeVar

from lightllm.simulate.backend import NEVER
from lightllm.simulate.latency import LatencyModel

_Job = TypeVar("_Job")


@dataclasses.dataclass(slots=True)
class Stretch(Generic[_Job]):
    """`count` rounds of the same decode rows, one after the other; one alone may have prefill chunks.

    Each row's context grows by one token a round, so round number i takes `first + (i - 1) * growth` seconds.
    """

    start: float
    count: int
    first: float
    growth: float
    begins: list[_Job] = dataclasses.field(default_factory=list)
    """Requests that get a first token in it: the last chunks of their prompts are computed."""

    def after(self, rounds: int) -> float:
        """When so many of its rounds are over."""
        return self.start + rounds * (self.first + (rounds - 1) * self.growth / 2)

    @property
    def end(self) -> float:
        return self.after(self.count)

    def over(self, now: float) -> int:
        """How many of its rounds are over at `now`, the last one not included."""
        passed = max(0.0, now - self.start)
        half = self.growth / 2
        # half * n^2 + (first - half) * n = passed
        linear = self.first - half
        rounds = int(2 * passed / (linear + math.sqrt(linear * linear + 4 * half * passed)))
        rounds = min(rounds, self.count - 1)
        while rounds < self.count - 1 and self.after(rounds + 1) < now:
            rounds += 1
        while rounds and self.after(rounds) > now:
            rounds -= 1
        return rounds

    def split(self, rounds: int) -> tuple[Stretch[_Job], Stretch[_Job]]:
        """Its first rounds, and the one behind them."""
        second = Stretch[_Job](self.after(rounds), 1, self.first + rounds * self.growth, self.growth)
        return dataclasses.replace(self, count=rounds), second


class Flight(Generic[_Job]):
    """What the device has to do. It is driven as the real one: a round is planned when the one before the last begins.

    A stretch stands at the end, and what comes meanwhile cuts it: the round that runs and the next one stay.
    """

    def __init__(self, latency: LatencyModel) -> None:
        self.latency = latency
        self._stretches: deque[Stretch[_Job]] = deque()
        self._free_at = 0.0

    @property
    def next_done(self) -> float:
        """When the oldest stretch is over; never, if there is none."""
        return self._stretches[0].end if self._stretches else NEVER

    @property
    def takes_more(self) -> bool:
        """Whether one more round is to be planned now."""
        return not self._stretches or (len(self._stretches) == 1 and self._stretches[0].count == 1)

    def __len__(self) -> int:
        return len(self._stretches)

    def add(
        self, now: float, count: int, rows: int, held: int, chunk_tokens: int, begins: list[_Job]
    ) -> None:
        """rows: that decode, and hold `held` tokens after the first of `count` rounds, those of prefill chunks included."""
        model = self.latency
        stretch = Stretch(
            max(self._free_at, now), count, model.seconds(rows + chunk_tokens, held), model.per_held * rows, begins
        )  # fmt: skip
        self._stretches.append(stretch)
        self._free_at = stretch.end

    def take(self) -> Stretch[_Job]:
        """The oldest one, which is over."""
        return self._stretches.popleft()

    def over(self, now: float) -> int:
        """Rounds of the oldest stretch that are over."""
        return self._stretches[0].over(now) if self._stretches else 0

    def cut(self, now: float) -> int:
        """Something has come. How many rounds it takes back, that the real device would not have been given yet."""
        if not self._stretches:
            return 0
        last = self._stretches.pop()
        if self._stretches:  # it has not begun
            kept, running = [dataclasses.replace(last, count=1)], 0
        else:
            running = last.over(now) + 1
            kept = [last] if running >= last.count else [*last.split(running)]
        self._stretches += kept
        self._free_at = kept[-1].end
        return last.count - sum(stretch.count for stretch in kept)
