"""Which waiting requests enter: asks the memory forecast for each group of them, in the order of their turn."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm.router.admission.demand import Demand
from lightllm.router.admission.forecast import Forecast
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import AdmissionPolicy
from lightllm.router.admission.slo import SloController
from lightllm.router.admission.wait import WaitPredictor
from lightllm.router.admission.waiting import WaitingGroup, WaitingList
from lightllm.router.planning.running import Running
from lightllm.router.request import Request
from lightllm.router.scheduler_config import SchedulerConfig

SKIPPED = 7
"""Rounds in a row that admit without a forecast, at most, while nothing has changed since none of those in turn fitted."""
PEAK_ROUNDS = 8
"""Rounds between two estimates of the peak for the statistics."""
SCANNED = 32
"""Waiting groups that are looked at in one round."""
TRIED = 2
"""Groups beside the first one that may turn out not to fit, before a round looks at no more."""


@dataclasses.dataclass(eq=False)
class AdmissionController:
    """Works on the books of its `Scheduler`."""

    _config: SchedulerConfig
    _policy: AdmissionPolicy
    _lengths: OutputLengths
    _running: Running
    _waiting: WaitingList
    _slo: SloController
    _wait: WaitPredictor
    seq: int = 0
    """The round that is planned next."""
    _stuck_at: tuple[int, int, int] | None = None
    """Admission found no group that fits, with (serial of the front one, requests waiting, requests that have left their
    row so far)."""
    _skipped: int = 0
    _peak: int = 0
    _peak_at: int = -PEAK_ROUNDS
    _rounds_alone: int = 0

    def admit(self, room: int, whole: bool, reserve: int, now: float) -> None:
        """Lets requests enter in the order of their turn, as long as their prefill can begin in this round and `reserve`
        slots stay available. A group that does not fit may be passed by others that do, within `max_overtakes`. `room`:
        tokens of the round for prefill chunks; `whole`: no prompt is split."""
        if self._holds_back():
            return
        if self._skipped < SKIPPED and self._still_stuck():
            self._skipped += 1
            return
        self._skipped = 0
        waiting = self._waiting
        count, context = waiting.count, waiting.context
        front = self._in_turn(room, whole, reserve)
        self._wait.admitted(count - waiting.count, context - waiting.context, front is not None, now)
        stuck = front is not None and waiting.count == count
        self._stuck_at = (front.serial, count, self._running.left) if front is not None and stuck else None

    def nobody_waits(self) -> None:
        """In the round that is planned."""
        self._wait.nobody_waits()

    def _still_stuck(self) -> bool:
        """Whether the head of the queue is the same as when it did not fit, and no running request has left since."""
        if self._stuck_at is None or not self._running.requests:
            return False
        serial, count, left = self._stuck_at
        front = next(self._waiting.in_turn(), None)
        return (
            left == self._running.left
            and (self._waiting.count <= count or count >= SCANNED)
            and front is not None
            and front.serial == serial
        )

    def _holds_back(self) -> bool:
        """LightLLM's --disable_aggressive_schedule: whether the streams have this round to themselves."""
        options = self._config.options
        alone = (
            options.disable_aggressive_schedule
            and len(self._running.requests) > 0
            and self._rounds_alone < options.router_max_wait_tokens
        )
        self._rounds_alone = self._rounds_alone + 1 if alone else 0
        return alone

    def _in_turn(self, room: int, whole: bool, reserve: int) -> WaitingGroup | None:
        """The first group that was left because it did not fit."""
        running, config = self._running, self._config
        queued = sum(min(running.work(r), config.chunked_prefill_size) for r in running.prefilling)
        forecast: Forecast | None = None
        passed: list[WaitingGroup] = []
        refused: list[WaitingGroup] = []
        for group, _ in zip(self._waiting.in_turn(), range(SCANNED), strict=False):
            if queued >= room or len(refused) > TRIED:
                break
            if not running.free_rows:
                passed.append(group)  # and so would be all that follow
                break
            fits = False
            if not _asks_for_more(group, refused):
                demand, unlocked = self._demand(group.requests)
                if whole and queued and queued + int(demand.work[0]) > room:
                    break  # it enters as soon as it can have a round
                if demand.size <= len(running.free_rows) and running.kv.available - unlocked >= reserve:
                    forecast = forecast or self.forecast()
                    fits = forecast.admit(demand)
                if not fits:
                    refused.append(group)
            if fits:
                self._waiting.enter(group, passed)
                for request, waits in zip(group.requests, demand.waits.tolist(), strict=True):
                    running.enter(request, waits)
                queued += int(np.minimum(demand.work, config.chunked_prefill_size).sum())
                if not all(other.may_be_passed(config.options.max_overtakes) for other in passed):
                    break
            else:
                passed.append(group)
                if not group.may_be_passed(config.options.max_overtakes):
                    break
        return passed[0] if passed else None

    def _demand(self, group: list[Request]) -> tuple[Demand, int]:
        """(what these siblings need, how much of it is cached and locked by no request). The siblings wait for the first one,
        and share its prompt. What one running request alone has does not count twice either, unless the forecast must be
        certain: that request may end before the candidate."""
        kv, may_err = self._running.kv, self._policy.may_err
        cached, unlocked = kv.prefixes(group)
        first = kv.may_wait(group[0], cached[0].length, self._running.prefilling)
        demands = []
        for i, (request, prefix) in enumerate(zip(group, cached, strict=True)):
            waits = first or (i > 0 and kv.siblings_wait(request, prefix.length))
            counted = prefix.read if may_err else prefix.shared
            context = request.known_tokens
            if i and waits and may_err and not request.output_ids:
                counted = context - 1
            demands.append(_prefilling(request, context - counted, context - prefix.length, waits))
        return Demand.of(demands), unlocked

    def forecast(self) -> Forecast:
        """What the running requests will need, before anything is planned in this round. What several of them read stays
        as long as one of them does: it counts once, and for none of them."""
        running, kv = self._running, self._running.kv
        rows, prefilling = running.prefilled_rows(), running.prefilling
        held, taken = running.kv_len[rows].astype(np.int64), [int(running.kv_len[r.row]) for r in prefilling]
        counted, common = [0] * len(prefilling), 0
        capacity = self._config.max_total_token_num
        used = kv.in_use / capacity
        if running.requests:
            capacity = self._slo.capacity(len(running.requests) + 1)
        if int(held.sum()) + sum(taken) > kv.in_use:
            counted = kv.shared_by_several(prefilling)
            held -= np.array(kv.shared_by_several(running.in_rows(rows)), dtype=np.int64)
            common = kv.in_use - int(held.sum()) - sum(taken) + sum(counted)
        limit, exact = running.max_new_tokens[rows], running.exact[rows]
        generated = limit - running.remaining[rows]
        self._lengths.update(generated[~exact], self.seq)
        forecast = Forecast(self._policy, self._lengths, self._config, capacity, common, used)
        forecast.add_decoding(Demand.decoding(held, generated, limit, exact))
        prompts = [
            _prefilling(r, len(r.context) - c, running.work(r), r.may_wait)
            for r, c in zip(prefilling, counted, strict=True)
        ]
        forecast.add_prefilling(Demand.of(prompts))
        return forecast

    def estimate_peak(self) -> int:
        """The most slots that the running requests will need, worked out anew every `PEAK_ROUNDS` rounds."""
        if not self._running.requests:
            self._peak_at = -PEAK_ROUNDS
            return 0
        if self.seq - self._peak_at >= PEAK_ROUNDS:
            self._peak, self._peak_at = self.forecast().peak, self.seq
        return self._peak


def _prefilling(request: Request, held: int, work: int, waits: bool) -> tuple[int, int, int, bool, int, bool]:
    """A row of `Demand.of`."""
    return held, len(request.output_ids), request.max_new_tokens, request.runs_to_limit, work, waits


def _asks_for_more(group: WaitingGroup, refused: list[WaitingGroup]) -> bool:
    """Whether `group` needs no less than one of `refused` in every respect: then it fits no better."""
    asks = group.asks
    return any(all(a >= b for a, b in zip(asks, other.asks, strict=True)) for other in refused)
