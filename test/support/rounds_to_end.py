"""Runs requests through a scheduler and a backend to their end, without processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lightllm.backend.process import Backend, RoundRunner
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice, Finish, ImageSpan, RoundTokens
from lightllm.protocol.rounds import Resync, first_seq
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True)
class Wanted:
    prompt: list[int]
    params: SamplingParams
    after_rounds: int = 0
    """It is added when so many rounds have been planned, or when nothing else is left to do."""
    abort_after: int | None = None
    """It is aborted so many rounds later, if it still runs."""
    images: list[ImageSpan] = dataclasses.field(default_factory=list)
    uncut: bool = False
    """A chunk holds an image whole."""
    n: int = 1
    """Siblings: see `sibling`."""

    def message(self, *choices: Choice, restored: bool = False) -> AddRequest:
        bounds = [bound for span in self.images for bound in (span.start, span.start + span.tokens)]
        uncut = int32(bounds if self.uncut else [])
        return AddRequest(
            int32(self.prompt), self.params, [*choices], restored=restored, uncut=uncut, images=self.images
        )


def sibling(request_id: int, index: int) -> int:
    """Under which number the choice `index` of a request is found in `Serving.tokens`."""
    return request_id + (index << 20)


class Serving:
    """`late` is called when nothing can go on before a result arrives; with `wait` results are waited for instead."""

    def __init__(
        self,
        backend: Backend,
        limits: SchedulerConfig,
        late: Callable[[], None] = lambda: None,
        wait: bool = False,
    ) -> None:
        self.scheduler = Scheduler(limits)
        self._limits = limits
        self._epoch = 0
        self.runner = RoundRunner(backend)
        self.tokens: dict[int, list[int]] = {}
        self.pooled: dict[int, np.ndarray] = {}
        self.finished: dict[int, Finish] = {}
        self.failures: list[str] = []
        self.submitted = 0
        self._late = late
        self._wait = wait
        self._aborts: dict[int, list[int]] = {}

    def run(self, wanted: list[Wanted], restarts: Sequence[int] = ()) -> list[list[int]]:
        """The tokens of every request. restarts: after so many rounds the scheduler is lost."""
        restarts = list(restarts)
        waiting = sorted(enumerate(wanted), key=lambda pair: pair[1].after_rounds)
        for _ in range(100_000):
            while waiting and (waiting[0][1].after_rounds <= self.submitted or not self.scheduler.has_work):
                self._add(*waiting.pop(0))
            if not self.scheduler.has_work:
                return [self.tokens[i] for i in range(len(wanted))]
            while (round_ := self.scheduler.next_round()) is not None:
                self.runner.submit(round_)
                self.submitted += 1
                for request_id in self._aborts.pop(self.submitted, []):
                    self.scheduler.abort(request_id)
                    self._record(self.scheduler.drain_outputs())
            if restarts and self.submitted >= restarts[0]:
                del restarts[0]
                self._restart(wanted)
                continue
            self._take()
            self.scheduler.check_invariants()
        raise AssertionError("no end")

    def _restart(self, wanted: list[Wanted]) -> None:
        """Another scheduler takes over; what is in flight is void."""
        self._epoch += 1
        self.scheduler = Scheduler(self._limits, epoch=self._epoch)
        self.runner.attach(first_seq(self._epoch))
        for request_id, output_ids in self.tokens.items():
            if request_id not in self.finished:
                choice = Choice(request_id, 0, int32(output_ids))
                self.scheduler.add(wanted[request_id].message(choice, restored=True))

    def _add(self, request_id: int, wanted: Wanted) -> None:
        choices = [Choice(sibling(request_id, index), index) for index in range(wanted.n)]
        self.tokens.update({choice.request_id: [] for choice in choices})
        self.scheduler.add(wanted.message(*choices))
        if wanted.abort_after is not None:
            self._aborts.setdefault(self.submitted + wanted.abort_after, []).append(request_id)

    def _take(self) -> None:
        result = self.runner.take_ready()
        if result is None:
            self._late()
            result = self.runner.take() if self._wait else self.runner.take_ready()
            assert result is not None, "neither a round nor a result"
        if result.failed:
            self.failures.append(result.failed)
        applied = self.scheduler.apply(result)
        self._record(applied.tokens)
        if applied.resync is not None:
            self.runner.submit(Resync(applied.resync))

    def _record(self, tokens: RoundTokens | None) -> None:
        if tokens is None:
            return
        for request_id, token in zip(tokens.request_ids, tokens.token_ids, strict=True):
            self.tokens[request_id].append(token)
        self.pooled.update(tokens.pooled)
        self.finished.update({finish.request_id: finish for finish in tokens.finished})
