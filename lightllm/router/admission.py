"""The Efficient Router: a request is admitted if the predicted peak of KV memory stays within the capacity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightllm.router.schedule_policy import Conservative
from lightllm.router.usage import Entries, peak


class Prefill(NamedTuple):
    """A request whose prompt is not complete yet, as a forecast wants it."""

    context: int
    """Tokens of its prompt, and of what it had generated before."""
    work: int
    """How many of them are still to be computed."""
    generated: int
    limit: int
    """Most tokens of its output, those `generated` included."""
    exact: bool = False
    """Its output will have `limit` tokens."""
    counted: int = 0
    """Tokens of its context that others have in memory, and that count already."""
    waits: bool = False
    """It may sit out rounds in which one of those ahead computes."""


class Forecast:
    """The memory that the running requests will need, as seen in one round before anything is planned in it.

    Candidates are added in the order in which they would be prefilled.
    """

    def __init__(
        self,
        policy: Conservative,
        capacity: int,
        token_budget: int,
        chunk: int,
        whole_prompts: bool,
        decode_rounds: int | None = None,
        common: int = 0,
    ) -> None:
        """`decode_rounds`: those between two rounds of prefill alone; None: chunks and decode rows share rounds.
        `common`: slots that several requests read, and that count for none of them."""
        self._policy = policy
        self._decode_rounds = decode_rounds
        self._capacity = capacity - common
        self._common = common
        self._token_budget = token_budget
        self._chunk = chunk
        self._whole_prompts = whole_prompts
        self._usage = policy.usage()
        self._held = 0
        self._most = 0
        """Slots in use if everybody ran to his limit and nobody ended."""
        self._prefill_work = 0
        self._longest_work = 0
        self._prefills = 0
        self._running = 0
        self._rounds_one_by_one = 0
        self._someone_waits = False

    def add_decoding(
        self, held: np.ndarray, generated: np.ndarray, limit: np.ndarray, exact: np.ndarray
    ) -> None:
        """Requests past their prefill; int64 [n], `exact` bool [n]."""
        to_come = self._policy.outputs_to_come(generated, limit, exact)
        self._append(Entries(held, to_come, np.ones(len(held), dtype=np.int64), generated, limit, exact))

    def add_prefilling(self, prompts: list[Prefill]) -> None:
        """Requests whose prompts are not complete yet, in the order in which they are served."""
        if prompts:
            self._add_prefilling(self._entries(prompts), prompts)

    def admit(self, prompts: list[Prefill]) -> bool:
        """Adds these candidates, all or none; False if they do not fit."""
        if self._running + len(prompts) > self._token_budget:
            return False  # a round would have no room for a decode row of each
        least = sum(p.context - p.counted - 1 for p in prompts) + max(self._held, self._usage.soonest)
        if self._running and least > self._capacity:
            return False  # as most do on a full server: the rest need not be worked out
        candidates = self._entries(prompts)
        if not self._fits(candidates):
            return False
        self._add_prefilling(candidates, prompts)
        return True

    def peak(self) -> int:
        """The most slots that will be in use, as far as is predicted."""
        return self._usage.peak + self._common

    def _fits(self, candidates: Entries) -> bool:
        if self._most + candidates.most <= self._capacity:
            return True
        # Whoever comes while nobody runs has the whole memory, so that what intake accepted always enters at last.
        if not self._running:
            to_come = np.maximum(candidates.limit - candidates.generated, 1)
            return peak(candidates.held, to_come, candidates.delay) <= self._capacity
        return (
            self._held + int(candidates.held.sum()) <= self._capacity
            and self._usage.peak_with(candidates) <= self._capacity
        )

    def _append(self, entries: Entries) -> None:
        self._usage.add(entries)
        self._held += int(entries.held.sum())
        self._most += entries.most
        self._running += len(entries.held)

    def _add_prefilling(self, entries: Entries, prompts: list[Prefill]) -> None:
        work = np.array([p.work for p in prompts], dtype=np.int64)
        self._rounds_one_by_one += int(self._steps(work).sum())
        self._someone_waits |= any(p.waits for p in prompts)
        self._prefill_work += int(work.sum())
        self._longest_work = max(self._longest_work, int(work.max()))
        self._prefills += len(prompts)
        self._append(entries)

    def _entries(self, prompts: list[Prefill]) -> Entries:
        """The whole context counts as held from the first round on. Nobody who comes later delays a prefill: those
        ahead do, with their chunks, and as decode rows afterwards."""
        # context - 1 slots and one a round for every output to come: the first output comes with the last prompt
        # token's slot, and the last one needs none.
        numbers = [(p.context - p.counted, p.work, p.generated, p.limit) for p in prompts]
        context, work, generated, limit = np.array(numbers, dtype=np.int64).T
        exact, waits = np.array([(p.exact, p.waits) for p in prompts], dtype=bool).T
        to_come = np.maximum(self._policy.outputs_to_come(generated, limit, exact), 1)
        held, delay = context - 1, self._prefill_rounds(work, waits)
        if self._decode_rounds is not None:
            # Memory grows in decode rounds alone, so these are the clock: the first output has come before the first.
            held, to_come, delay = held + 1, to_come - 1, delay * self._decode_rounds + 1
        return Entries(held, to_come, delay, generated, limit, exact)

    def _prefill_rounds(self, work: np.ndarray, waits: np.ndarray) -> np.ndarray:
        """int64 [n]: rounds with prefill until each of these has been prefilled, at most."""
        ahead = np.arange(len(work), dtype=np.int64)
        if self._whole_prompts:
            return self._prefills + ahead + 1
        room = np.maximum(self._token_budget - self._decode_rows(ahead), 1)
        # Whoever has more work than a chunk may leave budget unused; only chunks are certain behind such a one.
        longest = np.maximum(np.maximum.accumulate(work), self._longest_work)
        room = np.where(longest > self._chunk, np.minimum(room, self._chunk), room)
        rounds = -(-(self._prefill_work + np.cumsum(work)) // room)
        if self._someone_waits or waits.any():
            # Whoever sits out leaves budget unused; only the first in the row is certain to have its chunk.
            uncertain = np.logical_or.accumulate(waits) | self._someone_waits
            one_by_one = self._rounds_one_by_one + np.cumsum(self._steps(work))
            rounds = np.where(uncertain, one_by_one, rounds)
        return rounds

    def _decode_rows(self, ahead: np.ndarray) -> np.ndarray | int:
        """Decode rows beside the prefill of those that have `ahead` candidates before them, at most."""
        return self._running + ahead if self._decode_rounds is None else 0

    def _steps(self, work: np.ndarray) -> np.ndarray:
        """int64 [n]: rounds that each needs while it is the first in the row."""
        ahead = np.arange(len(work), dtype=np.int64)
        room = np.clip(self._token_budget - self._decode_rows(ahead), 1, self._chunk)
        return -(-work // room)
