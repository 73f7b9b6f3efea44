"""Who may enter: asks the memory forecast for each group of waiting requests, in the order of their turn."""

from __future__ import annotations

import numpy as np

from lightllm.router.admission.admission import Forecast, Prefill
from lightllm.router.admission.deadlines import Deadlines
from lightllm.router.admission.schedule_policy import Conservative
from lightllm.router.admission.waiting import WaitingGroup, WaitingList
from lightllm.router.limits import SchedulerLimits
from lightllm.router.memory.kv_books import CachedPrefix
from lightllm.router.planning.round_policy import RoundPolicy
from lightllm.router.planning.running import Running
from lightllm.router.request import Request

SKIPPED = 7
"""Rounds in which nobody tries, at most, if nobody could before, and it is not likely that anybody can now."""
FORECAST_ROUNDS = 8
"""A forecast is less than so many rounds old where somebody enters who fits easily,"""
EASILY = 0.1
"""with this share of the memory to spare, and what has come to the running ones since."""
PEAK_ROUNDS = 8
"""The expected peak is worked out for the statistics at most every so many rounds."""
SCANNED = 32
"""Waiting groups that are looked at in one round."""
TRIED = 2
"""How many of them may turn out not to fit, beside the first."""


class Entry:
    """Works on the books of its `Scheduler`."""

    def __init__(
        self,
        limits: SchedulerLimits,
        policy: Conservative,
        rounds: RoundPolicy,
        running: Running,
        waiting: WaitingList,
        deadlines: Deadlines,
    ) -> None:
        self._limits = limits
        self._policy = policy
        self._rounds = rounds
        self._running = running
        self._waiting = waiting
        self._deadlines = deadlines
        self._stuck = False
        """Nobody of those that wait could enter, then with this group in front, so many waiting, and so much given back:"""
        self._stuck_at: tuple[WaitingGroup | None, int, int] = None, 0, 0
        self._missing = 0
        """Slots without which nobody could have entered then."""
        self._skipped = 0
        self._peak = 0
        self._peak_at = -PEAK_ROUNDS
        self._rounds_alone = 0
        self._forecast: Forecast | None = None
        """The last one that was made, with all that have entered since."""
        self._forecast_at = 0
        """The round that it was made in."""

    def admit(self, room: int, whole: bool, reserve: int, now: float) -> None:
        """Lets requests enter in the order of their turn, as long as their prefill can begin in this round and `reserve`
        slots stay available. Who does not fit may be passed by others that do, within `max_overtakes`. `room`: tokens of
        the round for prefill chunks; `whole`: no prompt is split."""
        if self._holds_back():
            return
        if self._stuck and self._skipped < SKIPPED and self._still_stuck():
            self._skipped += 1
            return
        waiting = self._waiting
        count, context = waiting.count, waiting.context
        front = self._in_turn(room, whole, reserve)
        self._deadlines.admitted(count - waiting.count, context - waiting.context, front is not None, now)
        self._stuck = front is not None and waiting.count == count
        self._stuck_at = front, waiting.count, self._given_back()
        self._skipped = 0

    def _given_back(self) -> int:
        """Slots that those who have left so far held, or were counted with."""
        running = self._running
        return running.given_back + (0 if self._policy.may_err else running.given_up)

    def _still_stuck(self) -> bool:
        """Whether those in turn are the same as before, and what has been given back since is less than they lacked. What
        others are expected to take has hardly fallen by more than that, while nobody else has left."""
        front, count, given_back = self._stuck_at
        return (
            bool(self._running.requests)
            and self._given_back() - given_back < self._missing
            and (self._waiting.count <= count or count >= SCANNED)
            and next(self._waiting.in_turn(), None) is front
        )

    def _holds_back(self) -> bool:
        """LightLLM's --disable_aggressive_schedule: whether the streams have this round to themselves."""
        if not self._limits.disable_aggressive_schedule or not self._running.requests:
            self._rounds_alone = 0
            return False
        self._rounds_alone += 1
        if self._rounds_alone <= self._limits.router_max_wait_tokens:
            return True
        self._rounds_alone = 0
        return False

    def _in_turn(self, room: int, whole: bool, reserve: int) -> WaitingGroup | None:
        """The first who was left because he did not fit."""
        running, limits = self._running, self._limits
        queued = sum(min(running.work(r), limits.chunked_prefill_size) for r in running.prefilling)
        forecast: Forecast | None = None
        passed: list[WaitingGroup] = []
        refused: list[WaitingGroup] = []
        lacking: list[int] = []
        for group, _ in zip(self._waiting.in_turn(), range(SCANNED), strict=False):
            if queued >= room or len(refused) > TRIED:
                break
            if not running.rows.free:
                passed.append(group)  # and so would be all that follow
                break
            fits = False
            if not _asks_for_more(group, refused):
                cached, unlocked = running.kv.prefixes(group.requests)
                prompts = self._prompts(group.requests, cached)
                if whole and queued and queued + prompts[0].work > room:
                    break  # it enters as soon as it can have a round
                enough = len(prompts) <= running.rows.free and running.kv.available - unlocked >= reserve
                fits = enough and forecast is None and self._fits_easily(prompts)
                missing = 1
                if enough and not fits:
                    forecast = forecast or self._new_forecast()
                    fits, missing = forecast.admit(prompts), forecast.missing
                if not fits:
                    refused.append(group)
                    lacking.append(missing)
            if fits:
                self._waiting.enter(group, passed)
                for request, prompt in zip(group.requests, prompts, strict=True):
                    running.enter(request, prompt.waits)
                queued += sum(min(prompt.work, limits.chunked_prefill_size) for prompt in prompts)
                if not all(other.may_be_passed(limits.max_overtakes) for other in passed):
                    break
            else:
                passed.append(group)
                if not group.may_be_passed(limits.max_overtakes):
                    break
        self._missing = min(lacking, default=1)
        return passed[0] if passed else None

    def _new_forecast(self) -> Forecast:
        self._forecast, self._forecast_at = self.forecast(), self._policy.seq
        return self._forecast

    def _recent_forecast(self) -> Forecast | None:
        return self._forecast if self._policy.seq - self._forecast_at < FORECAST_ROUNDS else None

    def _fits_easily(self, prompts: list[Prefill]) -> bool:
        """Whether these may enter without a forecast of this round."""
        forecast, age = self._recent_forecast(), self._policy.seq - self._forecast_at
        if forecast is None or not self._policy.may_err or self._limits.tpot_slo:
            return False  # with tpot_slo, what may be held depends on how many run
        return forecast.fits_easily(
            prompts, EASILY * self._limits.max_total_token_num + age * len(self._running.requests)
        )

    def expected_peak(self) -> int:
        """The most slots that those who run will need, as was foreseen a few rounds ago at most."""
        if not self._running.requests:
            self._peak_at = -PEAK_ROUNDS
            return 0
        if self._policy.seq - self._peak_at >= PEAK_ROUNDS:
            forecast = self._recent_forecast() or self._new_forecast()
            self._peak, self._peak_at = forecast.peak(), self._policy.seq
        return self._peak

    def _prompts(self, group: list[Request], cached: list[CachedPrefix]) -> list[Prefill]:
        """The siblings in a group wait for the first one, and share its prompt. What one running request alone has does
        not count twice either, unless it must be certain: it may end before the candidate."""
        kv, may_err = self._running.kv, self._policy.may_err
        first = kv.may_wait(group[0], cached[0].length, self._running.prefilling)
        prompts = []
        for i, (request, prefix) in enumerate(zip(group, cached, strict=True)):
            waits = first or (i > 0 and kv.siblings_wait(request, prefix.length))
            counted = prefix.read if may_err else prefix.shared
            if i and waits and may_err and not request.output_ids:
                counted = request.known_tokens - 1
            context = request.known_tokens
            prompts.append(_prefill(request, context, context - prefix.length, counted, waits))
        return prompts

    def empty_forecast(self, policy: Conservative, capacity: int, common: int = 0) -> Forecast:
        """As if nothing ran. A token budget that is reduced for a while does not count: what intake accepted must be
        able to enter, and who runs short of memory meanwhile can pause."""
        limits = self._limits
        return Forecast(
            policy,
            capacity,
            limits.batch_max_tokens,
            limits.chunked_prefill_size,
            limits.whole_prompts,
            None if self._rounds.mixes else self._rounds.decode_rounds,
            common,
        )

    def forecast(self) -> Forecast:
        """What the running requests will need, before anything is planned in this round. What several of them read stays
        as long as one of them does: it counts once, and for none of them."""
        running, kv = self._running, self._running.kv
        rows, prefilling = running.prefilled_rows(), running.prefilling
        held, taken = running.kv_len[rows].astype(np.int64), [int(running.kv_len[r.row]) for r in prefilling]
        counted, common = [0] * len(prefilling), 0
        capacity = self._limits.max_total_token_num
        if running.requests:
            capacity = self._deadlines.capacity(len(running.requests) + 1)
        if int(held.sum()) + sum(taken) > kv.in_use:
            twice = kv.cache.shared
            counted = [int(twice[r.row]) for r in prefilling]
            held -= twice[rows]
            common = kv.in_use - int(held.sum()) - sum(taken) + sum(counted)
        forecast = self.empty_forecast(self._policy, capacity, common)
        limit, exact = running.max_new_tokens[rows], running.exact[rows]
        generated = limit - running.remaining[rows]
        self._policy.observe(generated[~exact])
        forecast.add_decoding(held, generated, limit, exact)
        forecast.add_prefilling(
            [
                _prefill(r, len(r.context), running.work(r), c, r.may_wait)
                for r, c in zip(prefilling, counted, strict=True)
            ]
        )
        return forecast


def _prefill(request: Request, context: int, work: int, counted: int, waits: bool) -> Prefill:
    generated, limit = len(request.output_ids), request.max_new_tokens
    return Prefill(context, work, generated, limit, request.runs_to_limit, counted, waits)


def _asks_for_more(group: WaitingGroup, refused: list[WaitingGroup]) -> bool:
    """Whether `group` needs no less than one of `refused` in every respect: then it fits no better."""
    requests, context, to_come = group.asks
    for other in refused:
        others, their_context, theirs_to_come = other.asks
        if requests >= others and context >= their_context and to_come >= theirs_to_come:
            return True
    return False
