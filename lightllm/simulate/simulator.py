"""The event loop: requests arrive, rounds end, and the scheduler decides. It is driven as the Router process drives it:
up to two rounds are in flight, so that the device never waits for a plan, and results come one round late."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from lightllm.errors import PromptTooLong, RequestError
from lightllm.protocol.messages import AddRequest, Choice, Finish, RoundTokens
from lightllm.protocol.rounds import Round
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.scheduler import MAX_IN_FLIGHT, Scheduler
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.sampling_params import SamplingParams
from lightllm.simulate.backend import NEVER, SimulatedBackend
from lightllm.simulate.figures import Distribution, Moment, Overtaking, RoundCosts, Timeline, Totals
from lightllm.simulate.latency import LatencyModel
from lightllm.simulate.live import LiveRequests, places_of
from lightllm.simulate.trace import TraceRequest


@dataclasses.dataclass(frozen=True)
class Slo:
    """What a user must see for a request to count as good. Seconds."""

    ttft: float = 10.0
    gap: float = 1.5
    """Between any two tokens."""


class Watch(Protocol):
    """Is told what becomes of requests, by their places."""

    def first(self, places: list[int], now: float) -> None:
        """Their first tokens have come."""

    def ended(self, place: int, cached_tokens: int, now: float) -> None:
        """It has ended well."""


class Simulation:
    """One run of one trace. What it found lies in its public attributes; `report.summarize` makes figures of them."""

    def __init__(
        self,
        config: SchedulerConfig,
        latency: LatencyModel,
        slo: Slo,
        max_new_tokens: int,
        warm_up: int,
        check_every: int = 0,
        progress: Callable[[int], object] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Rates are measured from the end of request number `warm_up` on. `check_every`: rounds between two checks of the
        scheduler's books, 0 for none. `progress` is told how many requests have ended or were refused."""
        self._watch = watch
        self.config = config
        self.scheduler = Scheduler(config)
        self.live = LiveRequests()
        self.backend = SimulatedBackend(latency, config.max_rows, self.live.end)
        self.slo = slo
        self.now = 0.0
        self.rounds = 0
        self.ttft, self.tpot, self.gap = Distribution(), Distribution(), Distribution()
        self.costs = RoundCosts()
        self.timeline = Timeline()
        self.overtaking = Overtaking()
        self.begin = Totals()
        """When the warm-up was over."""
        self.end = Totals()
        """When the last request had arrived and none waited for its first token any more: then the load ends."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.prefilled_tokens = 0
        self.recomputed_tokens = 0
        """Prefilled once more because their request had paused."""
        self.too_long = 0
        """Refused because they could never fit; the others were refused for load."""
        self._arrived = self._refused = self._finished = self._good = self._output_tokens = 0
        self._max_new_tokens = max_new_tokens
        self._warm_up = warm_up
        self._check_every = check_every
        self._progress = progress
        self._planning = 0
        """CPU nanoseconds of planning since the last round that was planned."""
        self._plans: dict[int, tuple[int, int]] = {}
        """Round in flight -> (rows, CPU nanoseconds of planning it)."""

    def run(self, requests: Iterator[TraceRequest]) -> None:
        """To the end of the trace and of all requests."""
        coming = next(requests, None)
        while True:
            done = self.backend.next_done
            if coming is not None and coming.arrival <= done:
                last, coming = coming, next(requests, None)
                self.arrive(last, coming is None)
            elif done < NEVER:
                self.advance()
            elif self.scheduler.has_work:
                raise RuntimeError("requests are left, but the scheduler plans nothing")
            else:
                break
        if self.end.time <= self.begin.time:  # a run so short that the load ended before the warm-up
            self.begin, self.end = Totals(), self._totals()

    def arrive(self, request: TraceRequest, last: bool = False) -> int | None:
        """A request comes, no later than anything else happens; its place, or None: it was refused. last: none follows."""
        self.now = max(self.now, request.arrival)
        place = self._add(request)
        if last:
            self._mark_end()
        self._plan()
        return place

    def advance(self) -> None:
        """To the end of the oldest round in flight, of which there must be one."""
        self.now = self.backend.next_done
        self._apply()
        self._plan()

    @property
    def next_done(self) -> float:
        """When the oldest round in flight is done; never if there is none."""
        return self.backend.next_done

    def outputs(self, place: int) -> int:
        """Tokens that this request, which has not ended, has generated."""
        return int(self.live.outputs[place])

    def use_latency(self, latency: LatencyModel, now: float) -> None:
        """The device is another one from the next round on that is planned."""
        self.backend.use_latency(latency)

    def watch_cache(self, ledger: BlockLedger) -> None:
        """Tells it of every change of the prefix cache, which is empty now."""
        self.scheduler.watch_cache(ledger)

    def _add(self, request: TraceRequest) -> int | None:
        self._arrived += 1
        request_id, place = self.live.reserve()
        self.backend.use_ends(self.live.end)
        prompt = len(request.prompt_ids)
        params = SamplingParams(max_new_tokens=self._max_new_tokens, seed=place)
        message = AddRequest(request.prompt_ids, params, [Choice(request_id, 0)])
        begun = time.thread_time_ns()
        try:
            self.scheduler.add(message, self.now)
        except RequestError as error:
            self.live.leave(place)
            self._refused += 1
            if self._progress is not None:
                self._progress(1)
            self.too_long += isinstance(error, PromptTooLong)
        else:
            order = self.overtaking.accepted()
            self.live.enter(place, order, request.arrival, prompt, request.output_len)
            self.prompt_tokens += prompt
            return place
        finally:
            self.costs.adding.add((time.thread_time_ns() - begun) * 1e-9)
        return None

    def _plan(self) -> None:
        while self.scheduler.in_flight < MAX_IN_FLIGHT:
            begun = time.thread_time_ns()
            round_ = self.scheduler.next_round(self.now)
            self._planning += time.thread_time_ns() - begun
            if round_ is None:
                return
            self._plans[round_.seq] = len(round_.rows), self._planning
            self._planning = 0
            self.backend.submit(round_, self.now)
            if round_.num_decode < len(round_.rows):
                self._count_prefill(round_)

    def _apply(self) -> None:
        result = self.backend.take()
        begun = time.thread_time_ns()
        tokens = self.scheduler.apply(result).tokens
        rows, planning = self._plans.pop(result.seq)
        self.costs.add(rows, (time.thread_time_ns() - begun + planning) * 1e-9)
        self.rounds += 1
        waited = len(self.overtaking) > 0
        if tokens is not None:
            self._take(tokens)
        if waited:
            self._mark_end()
        if self.timeline.due():
            self._look()
        if self._check_every and self.rounds % self._check_every == 0:
            self.scheduler.check_invariants()

    def _count_prefill(self, round_: Round) -> None:
        """Chunks, and what of them their request had computed before."""
        live, first = self.live, round_.num_decode
        places = self.backend.seeds[round_.rows[first:]]
        computed, end = round_.q_len[first:], round_.kv_len[first:]
        outputs = live.outputs[places]
        decoded = np.where(outputs, live.prompt_len[places] + outputs - 1, 0)
        known = np.maximum(live.prefilled[places], decoded)
        self.prefilled_tokens += int(computed.sum())
        self.recomputed_tokens += int(np.maximum(np.minimum(end, known) - (end - computed), 0).sum())
        live.prefilled[places] = np.maximum(known, end)

    def _take(self, tokens: RoundTokens) -> None:
        live = self.live
        places = places_of(tokens.request_ids)
        before = live.outputs[places]
        gaps = self.now - live.last_token[places]
        first = before == 0
        if first.any():
            for place in places[first].tolist():
                self.overtaking.started(int(live.order[place]))
                live.first_token[place] = self.now
            if self._watch is not None:
                self._watch.first(places[first].tolist(), self.now)
            gaps[first] = 0.0
        live.longest_gap[places] = np.maximum(live.longest_gap[places], gaps)
        live.last_token[places] = self.now
        live.outputs[places] = before + 1
        self._output_tokens += len(places)
        for finish in tokens.finished:
            self._finish(finish)

    def _finish(self, finish: Finish) -> None:
        live = self.live
        place = int(places_of([finish.request_id])[0])
        ttft = float(live.first_token[place] - live.arrival[place])
        gap = float(live.longest_gap[place])
        self.ttft.add(ttft)
        self.gap.add(gap)
        if finish.output_tokens > 1:
            self.tpot.add(
                float(live.last_token[place] - live.first_token[place]) / (finish.output_tokens - 1)
            )
        self.cached_tokens += finish.cached_tokens
        self._finished += 1
        self._good += ttft <= self.slo.ttft and gap <= self.slo.gap
        live.leave(place)
        if self._watch is not None:
            self._watch.ended(place, finish.cached_tokens, self.now)
        if self._finished == self._warm_up:
            self.begin = self._totals()
        if self._progress is not None:
            self._progress(1)

    def _totals(self) -> Totals:
        return Totals(
            self.now, self._finished, self._good, self._output_tokens, self.backend.busy, self._refused,
            self._arrived,
        )  # fmt: skip

    def _mark_end(self) -> None:
        self.end = self._totals()

    def _look(self) -> None:
        state = self.scheduler.snapshot()
        self.timeline.add(
            Moment(
                self.now,
                state.slots_used,
                state.slots_cached,
                state.estimated_peak,
                state.running,
                state.waiting,
            )  # fmt: skip
        )
