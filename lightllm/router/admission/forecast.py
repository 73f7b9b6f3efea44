"""The Efficient Router: a request is admitted if the predicted peak of KV memory stays within the capacity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightllm.router.admission.demand import Demand
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import AdmissionPolicy
from lightllm.router.admission.usage import peak
from lightllm.router.scheduler_config import SchedulerConfig


class _Queue(NamedTuple):
    """What is ahead of a prefill, as a sum."""

    work: int = 0
    """Prompt tokens still to be computed."""
    longest: int = 0
    """Most of them in one prompt."""
    prompts: int = 0
    one_by_one: int = 0
    """Rounds if each round had a chunk of one prompt only."""
    waits: bool = False
    """One of them may sit out rounds."""


class Forecast:
    """The memory that the running requests will need, as seen in one round before anything is planned in it.

    Candidates are added in the order in which they would be prefilled.
    """

    def __init__(
        self,
        policy: AdmissionPolicy,
        lengths: OutputLengths,
        config: SchedulerConfig,
        capacity: int,
        common: int = 0,
        used: float = 0.0,
    ) -> None:
        """`common`: slots that several requests read, and that count for none of them; `used`: the share of the memory that
        requests need now."""
        self._policy = policy
        self._config = config
        self._capacity = capacity - common
        self._common = common
        self._used = used
        self._usage = policy.usage(lengths)
        self._held = 0
        self._most = 0
        """Slots in use if every request ran to its limit and none ended."""
        self._queue = _Queue()
        self._running = 0

    def add_decoding(self, demand: Demand) -> None:
        """Requests past their prefill."""
        self._held += int(demand.held.sum())
        self._most += int((demand.held + demand.limit - demand.generated).sum())
        self._running += demand.size
        to_come = self._policy.outputs_to_come(demand, self._used)
        self._usage = self._usage.plus(demand, to_come, np.ones_like(demand.held))

    def add_prefilling(self, demand: Demand) -> None:
        """Requests whose prompts are not complete yet, in the order in which they are served."""
        self._add(demand, certain=True)

    def admit(self, demand: Demand) -> bool:
        """Adds these candidates, all or none; False if they do not fit."""
        return self._running + demand.size <= self._config.batch_max_tokens and self._add(
            demand, certain=False
        )

    @property
    def peak(self) -> int:
        """The most slots that will be in use, as far as is predicted."""
        return self._usage.peak + self._common

    def _add(self, demand: Demand, certain: bool) -> bool:
        """Adds requests that prefill if they fit, or are `certain` to run; whether it did. The whole context counts as held
        from the first round on."""
        rounds, queue = self._prefill_rounds(demand)
        # context - 1 slots and one a round for every output to come: the first output comes with the last prompt
        # token's slot, and the last one needs none.
        to_come = np.maximum(self._policy.outputs_to_come(demand, self._used), 1)
        if self._config.mixes:
            demand = demand._replace(held=demand.held - 1)
        else:
            # Memory grows in decode rounds alone, so these are the clock: the first output has come before the first.
            to_come, rounds = to_come - 1, rounds * self._config.decode_rounds + 1
        usage = self._usage.plus(demand, to_come, rounds)
        held = self._held + int(demand.held.sum())
        most = self._most + int((demand.held + demand.limit - demand.generated).sum())
        if not certain and most > self._capacity:
            if self._running:
                needed = max(held, usage.peak)
            else:  # a request that comes to an empty server has all of it, so that what intake accepted enters at last
                needed = peak(demand.held, demand.to_limit, rounds)
            if needed > self._capacity:
                return False
        self._usage, self._queue, self._held, self._most = usage, queue, held, most
        self._running += demand.size
        return True

    def _prefill_rounds(self, demand: Demand) -> tuple[np.ndarray, _Queue]:
        """int64 [n]: rounds with prefill until each of these has been prefilled, at most; and the queue with them. Prefill is
        first come, first served: only those ahead delay it, with their chunks, and as decode rows afterwards."""
        config = self._config
        work, longest, count, one_by_one, waits = self._queue
        rounds: list[int] = []
        for ahead, (tokens, may_wait) in enumerate(
            zip(demand.work.tolist(), demand.waits.tolist(), strict=True)
        ):
            decode_rows = self._running + ahead if config.mixes else 0
            room = max(config.batch_max_tokens - decode_rows, 1)
            chunk = min(room, config.chunked_prefill_size)
            count += 1
            work += tokens
            longest = max(longest, tokens)
            one_by_one += -(-tokens // chunk)
            waits |= may_wait
            if config.whole_prompts:
                rounds.append(count)
            elif waits:
                # A prompt that sits out leaves budget unused; only the first in the row is certain to have its chunk.
                rounds.append(one_by_one)
            else:
                # So does one with more work than a chunk; only chunks are certain behind it.
                rounds.append(-(-work // (chunk if longest > config.chunked_prefill_size else room)))
        return np.array(rounds, dtype=np.int64), _Queue(work, longest, count, one_by_one, waits)
