"""Who may enter: asks the memory forecast for each group of waiting requests, in the order of their turn."""

from __future__ import annotations

import numpy as np

from lightllm.router.admission import AdmissionPolicy, Forecast
from lightllm.router.limits import SchedulerLimits
from lightllm.router.request import Request
from lightllm.router.round_policy import RoundPolicy
from lightllm.router.running import Running
from lightllm.router.waiting import WaitingList


class Entry:
    """Works on the books of its `Scheduler`."""

    def __init__(
        self,
        limits: SchedulerLimits,
        policy: AdmissionPolicy,
        rounds: RoundPolicy,
        running: Running,
        waiting: WaitingList,
    ) -> None:
        self._limits = limits
        self._policy = policy
        self._rounds = rounds
        self._running = running
        self._waiting = waiting

    def admit(self, room: int, whole: bool, reserve: int) -> None:
        """Lets requests enter in the order of arrival, as long as their prefill can begin in this round and `reserve`
        slots stay available. `room`: tokens of the round for prefill chunks; `whole`: no prompt is split."""
        running, chunk = self._running, self._limits.chunked_prefill_size
        queued = sum(min(running.work(r), chunk) for r in running.prefilling)
        forecast = None
        while queued < room and (group := self._waiting.head()):
            known, unlocked = running.kv.prefixes(group)
            work = [r.known_tokens - k for r, k in zip(group, known, strict=True)]
            crowded = len(group) > running.rows.free or (whole and queued and queued + work[0] > room)
            if crowded or running.kv.available - unlocked < reserve:
                return
            forecast = forecast or self.forecast()
            waits = self._who_may_wait(group, known)
            context, generated = [r.known_tokens for r in group], [len(r.output_ids) for r in group]
            if not forecast.admit(context, work, waits, generated, [r.max_new_tokens for r in group]):
                return
            self._waiting.pop()
            for request, may_wait in zip(group, waits, strict=True):
                running.enter(request, may_wait)
            queued += sum(min(tokens, chunk) for tokens in work)

    def _who_may_wait(self, group: list[Request], known: list[int]) -> list[bool]:
        """The siblings in a group wait for the first one."""
        kv = self._running.kv
        first = kv.may_wait(group[0], known[0], self._running.prefilling)
        return [first] + [first or kv.siblings_wait(group[i], known[i]) for i in range(1, len(group))]

    def empty_forecast(self, policy: AdmissionPolicy) -> Forecast:
        """As if nothing ran. A token budget that is reduced for a while does not count: what intake accepted must be
        able to enter, and who runs short of memory meanwhile can pause."""
        limits = self._limits
        return Forecast(
            policy,
            limits.max_total_token_num,
            limits.batch_max_tokens,
            limits.chunked_prefill_size,
            limits.whole_prompts,
            None if self._rounds.mixes else self._rounds.decode_rounds,
        )

    def forecast(self) -> Forecast:
        """What the running requests will need, before anything is planned in this round."""
        forecast, running = self.empty_forecast(self._policy), self._running
        rows = running.prefilled_rows()
        limit = running.max_new_tokens[rows]
        forecast.add_decoding(running.kv_len[rows].astype(np.int64), limit - running.remaining[rows], limit)
        prefilling = running.prefilling
        forecast.add_prefilling(
            [len(r.context) for r in prefilling],
            [running.work(r) for r in prefilling],
            [r.may_wait for r in prefilling],
            [len(r.output_ids) for r in prefilling],
            [r.max_new_tokens for r in prefilling],
        )
        return forecast
