"""The Efficient Router: a request is admitted if the predicted peak of KV memory stays within the capacity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightllm.router.admission.schedule_policy import Conservative
from lightllm.router.admission.usage import Candidate, Entries, peak


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


class _Queue(NamedTuple):
    """What is ahead of a prefill, as a sum."""

    work: int = 0
    """Prompt tokens still to be computed."""
    longest: int = 0
    """Most of them in one prompt."""
    prompts: int = 0
    one_by_one: int = 0
    """Rounds if each round had a chunk of one prompt only."""
    someone_waits: bool = False


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
        self._queue = _Queue()
        self._running = 0
        self._put_off: list[list[Prefill]] = []
        """Admitted, and not worked out: so much is left that they fit in any case."""
        self._put_off_slots = 0
        """What they need at most."""
        self._roomy = True
        """So far everybody fitted easily."""
        self.missing = 0
        """Slots that the candidate refused last would need beside all that there are."""

    def add_decoding(
        self, held: np.ndarray, generated: np.ndarray, limit: np.ndarray, exact: np.ndarray
    ) -> None:
        """Requests past their prefill; int64 [n], `exact` bool [n]."""
        to_come = np.asarray(self._policy.outputs_to_come(generated, limit, exact))
        self._usage.add(Entries(held, to_come, np.ones(len(held), dtype=np.int64), generated, limit, exact))
        slots = int(held.sum())
        self._held += slots
        self._most += slots + int((limit - generated).sum())
        self._running += len(held)

    def add_prefilling(self, prompts: list[Prefill]) -> None:
        """Requests whose prompts are not complete yet, in the order in which they are served."""
        if prompts:
            candidates, self._queue = self._behind(prompts)
            self._join(candidates)

    def fits_easily(self, prompts: list[Prefill], spare: float = 0.0) -> bool:
        """Adds these candidates if they fit however long their outputs are, and leave `spare` slots; costs little."""
        slots = self._put_off_slots + sum([p.context - p.counted + p.limit - p.generated for p in prompts])
        if (
            not self._running
            or self._running + len(prompts) > self._token_budget
            or max(self._usage.at_most(slots), self._held + slots) + spare > self._capacity
        ):
            return False
        self._put_off.append(prompts)
        self._put_off_slots = slots
        self._running += len(prompts)
        return True

    def admit(self, prompts: list[Prefill]) -> bool:
        """Adds these candidates, all or none; False if they do not fit."""
        if self._roomy:
            if self.fits_easily(prompts):
                return True
            self._roomy = False
            self._catch_up()
        if self._running + len(prompts) > self._token_budget:
            return False  # a round would have no room for a decode row of each
        self.missing = 0
        least = sum([p.context - p.counted - 1 for p in prompts]) + max(self._held, self._usage.soonest)
        if self._running and least > self._capacity:
            self.missing = int(least) - self._capacity
            return False  # as most do on a full server: the rest need not be worked out
        candidates, queue = self._behind(prompts)
        if not self._fits(candidates):
            return False
        self._queue = queue
        self._join(candidates)
        return True

    def _catch_up(self) -> None:
        """Works out what was put off."""
        put_off, self._put_off, self._put_off_slots = self._put_off, [], 0
        self._running -= sum([len(prompts) for prompts in put_off])
        for prompts in put_off:
            candidates, self._queue = self._behind(prompts)
            self._join(candidates)

    def peak(self) -> int:
        """The most slots that will be in use, as far as is predicted."""
        self._catch_up()
        return self._usage.peak + self._common

    def _fits(self, candidates: list[Candidate]) -> bool:
        if self._most + sum([c.most for c in candidates]) <= self._capacity:
            return True
        # Whoever comes while nobody runs has the whole memory, so that what intake accepted always enters at last.
        if not self._running:
            alone = Entries.of(candidates).to_limit()
            return peak(alone.held, alone.to_come, alone.delay) <= self._capacity
        needed = max(self._held + sum([c.held for c in candidates]), self._usage.peak_with(candidates))
        self.missing = needed - self._capacity
        return needed <= self._capacity

    def _join(self, candidates: list[Candidate]) -> None:
        self._usage.join(candidates)
        self._held += sum([c.held for c in candidates])
        self._most += sum([c.most for c in candidates])
        self._running += len(candidates)

    def _behind(self, prompts: list[Prefill]) -> tuple[list[Candidate], _Queue]:
        """These as they come behind all that prefill, and what is ahead of those behind them. The whole context counts as
        held from the first round on. Nobody who comes later delays a prefill: those ahead do, with their chunks, and as
        decode rows afterwards."""
        # context - 1 slots and one a round for every output to come: the first output comes with the last prompt
        # token's slot, and the last one needs none.
        rounds, queue = self._prefill_rounds(prompts)
        candidates = []
        for p, delay in zip(prompts, rounds, strict=True):
            held = p.context - p.counted - 1
            to_come = max(int(self._policy.outputs_to_come(p.generated, p.limit, p.exact)), 1)
            if self._decode_rounds is not None:
                # Memory grows in decode rounds alone, so these are the clock: the first output has come before the first.
                held, to_come, delay = held + 1, to_come - 1, delay * self._decode_rounds + 1
            candidates.append(Candidate(held, to_come, delay, p.generated, p.limit, p.exact))
        return candidates, queue

    def _prefill_rounds(self, prompts: list[Prefill]) -> tuple[list[int], _Queue]:
        """Rounds with prefill until each of these has been prefilled, at most; and the queue with them."""
        work, longest, count, one_by_one, someone_waits = self._queue
        rounds: list[int] = []
        for ahead, prompt in enumerate(prompts):
            decode_rows = self._running + ahead if self._decode_rounds is None else 0
            room = max(self._token_budget - decode_rows, 1)
            chunk = min(room, self._chunk)
            count += 1
            work += prompt.work
            longest = max(longest, prompt.work)
            one_by_one += -(-prompt.work // chunk)
            someone_waits |= prompt.waits
            if self._whole_prompts:
                rounds.append(count)
            elif someone_waits:
                # Whoever sits out leaves budget unused; only the first in the row is certain to have its chunk.
                rounds.append(one_by_one)
            else:
                # So may whoever has more work than a chunk; only chunks are certain behind such a one.
                rounds.append(-(-work // (chunk if longest > self._chunk else room)))
        return rounds, _Queue(work, longest, count, one_by_one, someone_waits)
